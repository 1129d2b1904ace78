"""Token-exact parity of the portable graph, run unlowered in ONNX Runtime, with Transformers."""

from __future__ import annotations

import onnx
import pytest
import torch
from transformers import PreTrainedModel

from qeff_framework import QEFFAutoModel
from tests.portable_loop import greedy
from tests.tiny_models import tiny_causal_lm

#: Lengths 11 and 6 with chunks of 4: the last chunk of each is partial, and one row is all padding in the third chunk.
PROMPTS = [[3, 17, 42, 9, 88, 5, 61, 23, 90, 12, 77], [101, 4, 56, 31, 8, 64]]
NEW_TOKENS = 13
CTX_LEN = 32

MODEL_TYPES = ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi", "mistral", "gpt_oss", "mixtral"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.usefixtures("session_store")
def test_greedy_tokens_equal_transformers(model_type):
    model, _ = tiny_causal_lm(model_type)
    expected = [reference_tokens(model, prompt) for prompt in PROMPTS]
    assert len({token for row in expected for token in row}) > 4, "a degenerate model would prove nothing"

    exported = QEFFAutoModel(model).export()

    onnx.checker.check_model(str(exported.model_path), full_check=True)
    assert greedy(exported, PROMPTS, new_tokens=NEW_TOKENS, chunk=4, ctx_len=CTX_LEN) == expected


@pytest.mark.usefixtures("session_store")
@pytest.mark.parametrize("field", ["sliding_window", "attention_chunk_size"])
def test_a_window_that_the_code_does_not_read_is_told(field, caplog):
    """Transformers' cache reads it all the same, so that its results with a cache and without differ."""
    QEFFAutoModel(tiny_causal_lm("llama", num_hidden_layers=1, **{field: 4})[0]).export()
    assert f"names a window of 4 tokens ({field}), which the code of LlamaForCausalLM does not read" in caplog.text


def reference_tokens(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Greedy continuation by recomputing the whole sequence each time: no cache, no padding."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
