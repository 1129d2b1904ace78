"""Continuous batching through the public interface: twelve prompts in four rows, each as if it were alone."""

from __future__ import annotations

import json

import pytest

from qeff_framework import QEFFAutoModelForCausalLM, cli, load_compiled
from qeff_framework.errors import InputError, OptionError
from tests.checkpoints import save_tiny_checkpoint
from tests.tiny_models import tiny_causal_lm
from tests.twelve_prompts import CTX_LEN, MAX_LENGTH, answers_alone, twelve_prompts

pytestmark = pytest.mark.usefixtures("session_store")

SIZES = {"prefill_seq_len": 4, "ctx_len": CTX_LEN, "num_cores": 2}


@pytest.mark.parametrize(("model_type", "slots"), [("llama", 4), ("gemma3_text", 6)])
def test_twelve_prompts_in_four_rows(model_type, slots) -> None:
    module, _ = tiny_causal_lm(model_type)
    prompts = twelve_prompts()
    expected, eos = answers_alone(module, prompts)
    model = QEFFAutoModelForCausalLM(module)
    compiled = model.compile("ort_sim", full_batch_size=4, kv_cache_batch_size=slots, **SIZES)
    assert [dict(entry.dims) for entry in compiled.specializations] == [
        {"batch_size": 1, "ctx_len": CTX_LEN, "full_batch_size": slots, "seq_len": 4},
        {"batch_size": 4, "ctx_len": CTX_LEN, "full_batch_size": slots, "seq_len": 1},
        *({"batch_size": n, "ctx_len": CTX_LEN, "full_batch_size": slots, "seq_len": 4} for n in (2, 3, 4)),
        *({"batch_size": n, "ctx_len": CTX_LEN, "full_batch_size": slots, "seq_len": 1} for n in (1, 2, 3)),
    ]
    assert compiled.program["in_place"] == [state.input for state in compiled.states]
    assert compiled.program["rows_of_step"] == compiled.program["in_place"]
    assert {"StepRows@1", "GroupQueryAttention@7"} <= set(compiled.transforms)
    asked = {"max_length": MAX_LENGTH, "eos_token_id": eos}
    output = model.generate(prompts=prompts, **asked)
    assert output.generated_ids == expected
    assert {"eos", "length"} == set(output.finish_reasons)
    # Fewer prompts than rows, in another order.
    assert model.generate(prompts=prompts[2:0:-1], **asked).generated_ids == expected[2:0:-1]


def test_spare_slots_and_compute_contexts_together() -> None:
    module, _ = tiny_causal_lm("llama")
    prompts = twelve_prompts()
    # Half of the prompts begin like another one.
    prompts = [*prompts[:6], *([*prompts[3][:9], *prompt[:3]] for prompt in prompts[6:])]
    expected, eos = answers_alone(module, prompts)
    model = QEFFAutoModelForCausalLM(module)
    model.compile(
        "ort_sim",
        full_batch_size=3,
        kv_cache_batch_size=5,
        comp_ctx_lengths_prefill=(8, 20),
        comp_ctx_lengths_decode=(12, 24),
        **SIZES,
    )
    assert model.generate(prompts=prompts, max_length=MAX_LENGTH, eos_token_id=eos).generated_ids == expected


def test_command_line(tmp_path, capsys) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model", "gpt2")
    sizes = ["--prefill-seq-len", "4", "--ctx-len", "24", "-o", str(tmp_path / "program")]
    assert cli.main(["compile", str(checkpoint), "--backend", "ort_sim", "--full-batch-size", "2", *sizes]) == 0
    capsys.readouterr()
    prompts = ["one", "two three", "four", "five six seven", "eight"]
    asked = ["--prompt", *prompts, "--max-new-tokens", "6", "--json"]
    assert cli.main(["generate", str(tmp_path / "program"), *asked]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    with load_compiled(tmp_path / "program") as runner:
        alone = [runner.generate(prompts=[prompt], max_new_tokens=6).generated_ids[0] for prompt in prompts]
    assert [item["token_ids"] for item in results] == alone


def test_sizes_that_contradict_each_other_are_refused_before_the_export(store_root) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    for sizes, message in [
        ({"full_batch_size": 4, "batch_size": 2}, "exclude each other"),
        ({"full_batch_size": 4, "kv_cache_batch_size": 3}, "kv_cache_batch_size=3 is less than full_batch_size=4"),
        ({"kv_cache_batch_size": 3}, "needs full_batch_size"),
        ({"num_speculative_tokens": 4}, "decode steps of 5 tokens: more than prefill_seq_len=4"),
        ({"num_speculative_tokens": (-1, 2)}, "numbers of at least 0"),
        ({"comp_ctx_lengths_decode": (8,)}, "comp_ctx_lengths_decode alone is not enough"),
        ({"comp_ctx_lengths_decode": (8,), "comp_ctx_lengths_prefill": (8, 16)}, "holds 8, .* of the decode programs"),
        ({"comp_ctx_lengths_decode": (80,), "comp_ctx_lengths_prefill": (8,)}, "holds 80: lengths are 1 to ctx_len=40"),
        ({"comp_ctx_lengths_decode": (8,), "comp_ctx_lengths_prefill": (2,)}, "less than prefill_seq_len=4"),
        (
            {"comp_ctx_lengths_decode": (8,), "comp_ctx_lengths_prefill": (16,), "num_speculative_tokens": (1, 2)},
            "cannot be combined with comp_ctx_lengths",
        ),
    ]:
        with pytest.raises(OptionError, match=message):
            model.compile("ort_sim", **{**SIZES, **sizes})
    assert not (store_root / "exports").exists()


def test_a_batch_program_says_how_to_take_more_prompts() -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    model.compile("ort_sim", batch_size=2, **SIZES)
    with pytest.raises(InputError, match=r"compile with batch_size=3 \(or with full_batch_size, for any number"):
        model.generate(prompts=[[3], [4], [5]], generation_len=2)
