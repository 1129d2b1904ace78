"""Falcon with ALiBi: its biases stand for the tokens of a step and those that the cache counts, not for the slots of a cache.

Its attention adds them by code of its own: once in the implementation ``sdpa``, which Transformers chooses by default, and twice
in ``eager``. Here they are added once, whatever implementation the module was loaded with.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from qeff_framework.seam.attention import attention_interface
from qeff_framework.seam.scope import current_scope


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of each attention of a model with ALiBi. Others rotate, and stay as they are."""
    if not model.config.alibi:
        return
    module: Any
    for module in model.modules():
        if hasattr(module, "use_alibi"):
            module.use_alibi = False
        if hasattr(module, "query_key_value") and hasattr(module, "_split_heads"):
            module.forward = MethodType(_attend, module)


def _attend(
    self: Any,
    hidden_states: torch.Tensor,
    alibi: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    layer_past: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    del alibi, position_ids
    batch, seq, _width = hidden_states.shape
    query, key, value = (part.transpose(1, 2) for part in self._split_heads(self.query_key_value(hidden_states)))
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    bias = _biases(self.num_heads, _places(key)) * self.inv_norm_factor
    attended, _weights = attention_interface(
        self, query, key, value, attention_mask, scaling=self.inv_norm_factor, position_bias=bias
    )
    return self.dense(attended.reshape(batch, seq, self.num_heads * self.head_dim)), None


def _places(key: torch.Tensor) -> torch.Tensor:
    step = current_scope().step
    return torch.arange(key.shape[2]) if step is None else step.kv_positions


def _biases(heads: int, places: torch.Tensor) -> torch.Tensor:
    """``[1, Hq, 1, C]``: the slope of each head times each place, factors and product rounded to bfloat16 as in the library.

    The product of two such numbers is exact in float32, in which a graph computes it.
    """
    slopes = build_alibi_tensor(torch.ones((1, 2), dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    return _rounded(slopes[None, :, None, None] * _rounded(places.to(torch.float32)))


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.to(torch.bfloat16).to(torch.float32)
