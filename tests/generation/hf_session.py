"""A tiny random Transformers model behind the session contract, so that the loop can be compared with ``model.generate``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.generation.fakes import FakeCausalLM

HF_VOCAB = 48


@cache
def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=HF_VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.3,  # far enough from uniform that the tokens depend on the context
    )
    return LlamaForCausalLM(config).eval()


class LlamaSession(FakeCausalLM):
    """Recomputes the whole history of a row; everything else is the fake's, checks included."""

    def __init__(self, batch_size: int = 1, prefill: int = 4, ctx_len: int = 48) -> None:
        super().__init__(batch_size, prefill, ctx_len, HF_VOCAB)

    def model(self, history: Sequence[int]) -> np.ndarray:
        return _logits(tuple(history))


@cache
def _logits(history: tuple[int, ...]) -> np.ndarray:
    with torch.no_grad():
        return tiny_llama()(torch.tensor([history]), use_cache=False).logits[0, -1].float().numpy()


def hf_generate(
    prompt: Sequence[int], *, processors: Any = (), criteria: Any = (), streamer: Any = None, **config: Any
) -> list[int]:
    """New tokens of ``model.generate`` for one prompt."""
    ids = torch.tensor([list(prompt)])
    output = tiny_llama().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(pad_token_id=0, **config),
        logits_processor=processors,
        stopping_criteria=criteria,
        streamer=streamer,
    )
    return output[0, len(prompt) :].tolist()
