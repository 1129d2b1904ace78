"""The test of truth: what Transformers' own eager attention generates, greedily."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


@contextlib.contextmanager
def eager_attention(module: PreTrainedModel) -> Iterator[None]:
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def eager_greedy(module: PreTrainedModel, prompt: Sequence[int], new_tokens: int, *, eos: bool = False) -> list[int]:
    """The new tokens for one prompt; without `eos` the end-of-text token does not stop the generation."""
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=module.generation_config.eos_token_id if eos else None,
        pad_token_id=0,
    )
    ids = torch.tensor([list(prompt)])
    # Prompts of a wanted length may happen to contain the padding id; the mask says that every token counts.
    with eager_attention(module), torch.no_grad():
        output = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(token) for token in output[0, len(prompt) :]]


def eager_seq2seq_greedy(module: PreTrainedModel, source: Sequence[int], new_tokens: int, **settings: Any) -> list[int]:
    """What an encoder-decoder generates for one source, without the decoder's start token.

    `settings` are those of a generation config; what they leave open is the module's own.
    """
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=0, **settings)
    ids = torch.tensor([list(source)])
    with eager_attention(module), torch.no_grad():
        output = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(token) for token in output[0, 1:]]
