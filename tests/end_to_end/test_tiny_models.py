"""Tiny random models of real architectures through `ort_sim`: the same tokens as Transformers' eager greedy decoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from qeff_framework import QEFFAutoModel
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

pytestmark = pytest.mark.usefixtures("session_store")

#: Longer than the sliding windows of 5, longer than one prefill step, and of unequal lengths.
PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90], [11, 29, 47, 83, 101, 6, 38, 77]]
NEW_TOKENS = 12


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen3", "gemma2", "gpt2", "phi", "mistral", "gemma3_text", "gpt_oss", "mixtral"]
)
def test_same_tokens_as_eager(model_type: str) -> None:
    module, _ = tiny_causal_lm(model_type)
    expected = [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > 5, "the reference is degenerate"

    model = QEFFAutoModel(module)
    model.compile(backend="ort_sim", prefill_seq_len=4, ctx_len=32, batch_size=4, num_cores=2)
    batch = model.generate(prompts=PROMPTS, generation_len=NEW_TOKENS, ignore_eos=True)
    assert batch.generated_ids == expected
    # The rows that have no prompt are padding and change nothing.
    alone = model.generate(prompts=PROMPTS[:1], generation_len=NEW_TOKENS, ignore_eos=True)
    assert alone.generated_ids == expected[:1]


def test_the_first_end_of_text_ends_a_row() -> None:
    module, _ = tiny_causal_lm("llama")
    free = [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    end = free[0][4]
    model = QEFFAutoModel(module)
    model.compile(backend="ort_sim", prefill_seq_len=4, ctx_len=32, batch_size=3, num_cores=2)
    output = model.generate(prompts=PROMPTS, generation_len=NEW_TOKENS, eos_token_id=end)
    for got, want in zip(output.generated_ids, free, strict=True):
        stop = want.index(end) + 1 if end in want else NEW_TOKENS
        assert got == want[:stop]


def test_a_compiled_artifact_can_be_moved(tmp_path: Path) -> None:
    from qeff_framework import load_compiled

    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModel(module)
    compiled = model.compile(
        backend="ort_sim", prefill_seq_len=4, ctx_len=32, batch_size=1, num_cores=2, compile_dir=tmp_path / "here"
    )
    expected = model.generate(prompts=PROMPTS[:1], generation_len=4, ignore_eos=True).generated_ids
    assert compiled.directory == tmp_path / "here"
    (tmp_path / "here").rename(tmp_path / "there")
    with load_compiled(tmp_path / "there") as moved:
        assert moved.generate(prompts=PROMPTS[:1], generation_len=4, ignore_eos=True).generated_ids == expected
