"""Prompt lookup and draft models through the public interface: the tokens of plain decoding in fewer steps."""

from __future__ import annotations

import json

import pytest

from qeff_framework import QEFFAutoModelForCausalLM, cli, load_compiled
from qeff_framework.errors import InputError
from tests.checkpoints import save_tiny_checkpoint
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

pytestmark = pytest.mark.usefixtures("session_store")

PROMPTS = [[5, 17, 99, 23, 42, 7], [71, 3, 90, 71, 3], [9, 9, 9, 9]]


@pytest.mark.parametrize(
    ("model_type", "rows"),
    [("llama", {"batch_size": 3}), ("gemma3_text", {"full_batch_size": 2, "kv_cache_batch_size": 3})],
)
def test_drafts_change_no_token(model_type, rows) -> None:
    """Most drafts of a random model are wrong, so this also covers what they leave in the cache."""
    module, _ = tiny_causal_lm(model_type)
    model = QEFFAutoModelForCausalLM(module)
    model.compile("ort_sim", prefill_seq_len=8, ctx_len=96, num_speculative_tokens=(1, 4), num_cores=2, **rows)
    asked = {"prompts": PROMPTS, "generation_len": 80, "ignore_eos": True}
    plain = model.generate(**asked)
    output = model.generate(**asked, prompt_lookup_num_tokens=4)
    assert plain.generated_ids == output.generated_ids == [eager_greedy(module, prompt, 80) for prompt in PROMPTS]
    metrics = output.perf_metrics
    assert 20 < metrics.drafts_accepted < metrics.drafts_proposed / 2
    assert metrics.decode_steps < plain.perf_metrics.decode_steps
    if model_type == "llama":
        # The program as its own draft model: nearly all drafts are right, and each step gives several tokens.
        with load_compiled(model.compiled.directory) as draft:
            ahead = model.generate(**asked, assistant_model=draft)
        assert ahead.generated_ids == plain.generated_ids
        assert ahead.perf_metrics.drafts_accepted > 0.9 * ahead.perf_metrics.drafts_proposed
        assert ahead.perf_metrics.decode_steps < plain.perf_metrics.decode_steps / 3
        with pytest.raises(InputError, match="its own draft model"):
            model.generate(**asked, assistant_model=model)
        with pytest.raises(InputError, match="LlamaForCausalLM cannot be the draft model"):
            model.generate(**asked, assistant_model=module)


def test_command_line(tmp_path, capsys) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model", "gpt2")
    sizes = ["--prefill-seq-len", "8", "--ctx-len", "64", "-O", "num_speculative_tokens=3", "--backend", "ort_sim"]
    asked = ["--prompt", "one two one two", "--max-new-tokens", "40", "--json"]
    results = []
    for more in ([], ["--prompt-lookup-num-tokens", "3"]):
        assert cli.main(["generate", str(checkpoint), *sizes, *asked, *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    plain, drafted = results
    assert drafted["results"] == plain["results"]
    assert plain["metrics"]["drafts_proposed"] == 0
    assert drafted["metrics"]["drafts_proposed"] >= drafted["metrics"]["drafts_accepted"] > 0
