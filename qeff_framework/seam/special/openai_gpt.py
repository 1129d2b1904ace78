"""OpenAI GPT: older than the key/value cache. Its forward takes none, so it gets one.

Its attention computes the keys already transposed and masks by a table of its own; both go to the attention interface instead.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from qeff_framework.seam.attention import attention_interface


def adapt(model: PreTrainedModel) -> None:
    """Lets the forward of `model` take a cache and its attentions use it."""
    running = _Running()
    attentions: list[Any] = [
        module for module in model.modules() if hasattr(module, "_attn") and hasattr(module, "split_heads")
    ]
    for layer, module in enumerate(attentions):
        module._attn = MethodType(_attend_with(running, layer), module)  # noqa: SLF001
    model.forward = MethodType(_forward_with(running, type(model).forward), model)


class _Running:
    """What the attentions of a running forward need."""

    cache: Cache | None = None
    mask: torch.Tensor | None = None


def _forward_with(running: _Running, forward: Any) -> Any:
    def with_cache(
        self: Any,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Cache,
        use_cache: bool = True,
        **others: Any,
    ) -> Any:
        del use_cache
        embeds = self.get_input_embeddings()(input_ids)
        arguments = {"config": self.config, "attention_mask": None, "position_ids": position_ids}
        # Transformers 5.24 renamed the arguments.
        known = inspect.signature(create_causal_mask).parameters
        arguments["cache" if "cache" in known else "past_key_values"] = past_key_values
        arguments["inputs_embeds" if "inputs_embeds" in known else "input_embeds"] = embeds
        running.cache, running.mask = past_key_values, create_causal_mask(**arguments)
        try:
            return forward(self, input_ids=input_ids, position_ids=position_ids, **others)
        finally:
            running.cache = running.mask = None

    return with_cache


def _attend_with(running: _Running, layer: int) -> Any:
    def attend(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> list[torch.Tensor]:
        key = key.transpose(2, 3)
        if running.cache is not None:
            key, value = running.cache.update(key, value, layer)
        scale = value.shape[-1] ** -0.5 if self.scale else 1.0
        attended, _weights = attention_interface(self, query, key, value, running.mask, scaling=scale)
        return [attended.transpose(1, 2)]

    return attend
