"""The reference is what Transformers decodes, for as many steps as asked, and says when it is not worth comparing with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest
import torch
import transformers

from qeff_framework.coverage import reference
from qeff_framework.coverage.processes import Check, Report, first_line
from qeff_framework.coverage.reference import (
    CLEAR_MARGIN,
    UNCACHED,
    check_causal_lm,
    check_encoder,
    clear_reference,
    reference_embedding,
    reference_greedy,
    reference_logits,
)
from qeff_framework.coverage.tiny import tiny_model, tiny_prompts
from qeff_framework.errors import UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

KINDS = {
    "dense": "llama",
    "windows": "gemma3_text",
    "experts": "mixtral",
    "latent attention": "deepseek_v3",
    "learned selection": "deepseek_v32",
    "linear attention": "qwen3_next",
    "state space": "mamba",
    "hybrid": "nemotron_h",
    "alibi": "bloom",
    "encoder as decoder": "bert",
    "text of a multimodal model": "qwen3_5",
}


@pytest.mark.parametrize("model_type", KINDS.values(), ids=KINDS)
def test_each_kind_of_decoder_has_a_lively_reference(model_type: str) -> None:
    facts = check_causal_lm(model_type)
    assert facts["distinct"] >= 3
    assert facts["parameters"] < 5_000_000
    assert facts["cache_gap"] < 1e-3


@pytest.mark.skipif(
    transformers.__version__.startswith(("5.21.", "5.22.", "5.23.")), reason="it decodes without a cache there"
)
@pytest.mark.parametrize("model_type", UNCACHED)
def test_an_uncached_reference_differs_from_the_cached_one(model_type: str) -> None:
    facts = check_causal_lm(model_type)
    assert facts["distinct"] >= 3
    assert facts["cache_gap"] > 0.1


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "deberta-v2", "modernbert", "longformer"])
def test_each_kind_of_encoder_mixes_its_tokens(model_type: str) -> None:
    facts = check_encoder(model_type)
    assert facts["shape"] == [len(tiny_prompts()[0]), 64]
    assert facts["reach"] > 0.01


def test_greedy_tokens_are_those_of_a_loop_over_whole_sequences() -> None:
    module = tiny_model("gemma3_text", "causal-lm")
    prompts = tiny_prompts()
    expected = []
    for prompt in prompts:
        sequence = list(prompt)
        for _ in range(16):
            with torch.no_grad():
                sequence.append(int(module(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax()))
        expected.append(sequence[len(prompt) :])
    assert reference_greedy(module, prompts) == expected


def test_end_tokens_do_not_stop_the_reference() -> None:
    module = tiny_model("llama", "causal-lm")
    tokens = reference_greedy(module, tiny_prompts())
    module.generation_config.eos_token_id = tokens[0][2]
    module.config.eos_token_id = tokens[0][2]
    assert reference_greedy(module, tiny_prompts()) == tokens
    assert [len(row) for row in tokens] == [16, 16]
    assert module.generation_config.eos_token_id == tokens[0][2]


def test_forced_logits_predict_the_greedy_tokens() -> None:
    module = tiny_model("llama", "causal-lm")
    prompts = tiny_prompts()
    tokens = reference_greedy(module, prompts, steps=6)
    for rows, row in zip(reference_logits(module, prompts, tokens), tokens, strict=True):
        assert rows.argmax(-1).tolist() == row


def test_forced_logits_follow_the_given_continuation() -> None:
    module = tiny_model("llama", "causal-lm")
    prompt, continuation = tiny_prompts()[0], [20, 30, 40]
    (rows,) = reference_logits(module, [prompt], [continuation])
    with torch.no_grad():
        whole = module(input_ids=torch.tensor([[*prompt, *continuation[:-1]]])).logits[0, len(prompt) - 1 :]
    torch.testing.assert_close(rows, whole, atol=1e-4, rtol=1e-4)


def test_a_clear_reference_has_no_near_tie() -> None:
    found = clear_reference(tiny_model("gemma", "causal-lm"))
    assert found.margin >= CLEAR_MARGIN
    for rows, row in zip(found.logits, found.tokens, strict=True):
        best = rows.topk(2)
        assert best.indices[:, 0].tolist() == row
        assert float(((best.values[:, 0] - best.values[:, 1]) / rows.std(dim=-1)).min()) >= found.margin - 1e-6


def test_embeddings_are_those_of_a_padded_batch() -> None:
    module = tiny_model("bert", "encoder")
    short, long = tiny_prompts()
    padding = len(long) - len(short)
    ids = torch.tensor([[*short, *[0] * padding], long])
    mask = torch.tensor([[1] * len(short) + [0] * padding, [1] * len(long)])
    with torch.no_grad():
        batch = module(input_ids=ids, attention_mask=mask).last_hidden_state
    alone = reference_embedding(module, [short, long])
    torch.testing.assert_close(alone[0], batch[0, : len(short)], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[1], batch[1], atol=1e-4, rtol=1e-4)


def test_a_model_that_ignores_its_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(model_type: str, task: str) -> torch.nn.Module:
        model = tiny_model(model_type, task)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model

    monkeypatch.setattr(reference, "tiny_model", constant)
    with pytest.raises(UnsupportedModelError, match="degenerate"):
        check_causal_lm("llama")
    with pytest.raises(UnsupportedModelError, match="does not mix"):
        check_encoder("bert")


def test_the_command_prints_a_line_a_type_and_fails_if_one_has_no_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep_here(check: Check, model_types: Iterable[str], *, time_limit: float) -> Iterator[Report]:
        """In this process: tests/coverage/test_processes.py starts those of a sweep."""
        assert time_limit == 120
        for model_type in model_types:
            error, facts = None, {}
            try:
                facts = check(model_type)
            except UnsupportedModelError as reason:
                error = first_line(reason)
            yield Report(model_type=model_type, ok=error is None, seconds=0.0, error=error, facts=facts)

    monkeypatch.setattr(reference, "sweep", sweep_here)
    assert reference.main(["llama", "nonesuch"]) == 1
    lines = {line["model_type"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert lines["llama"]["ok"]
    assert lines["llama"]["class"] == "LlamaForCausalLM"
    assert not lines["nonesuch"]["ok"]
    assert lines["nonesuch"]["error"].startswith("UnsupportedModelError: ")
    assert reference.main(["llama"]) == 0
