"""Attention that goes through no interface: calls of ``scaled_dot_product_attention`` become dialect ops.

Every attention processor and every attention backend of diffusers that runs on a CPU ends in this function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from qeff_framework.dialect import ops


class PlainAttention(TorchFunctionMode):
    """Within it, attention over queries ``[B, H, S, D]`` leaves one node in the graph; what has another form stays as it is."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces one function."""
        del types
        kwargs = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        if query.dim() != 4:
            return func(*args, **kwargs)
        return _emitted(*args, **kwargs)


def _emitted(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001 - the op groups heads by their numbers
) -> torch.Tensor:
    del dropout_p  # models are in eval mode
    factor = float(scale) if scale is not None else float(query.shape[-1]) ** -0.5
    # A query without an axis of the batch of its keys would need one: torch broadcasts, the op does not.
    batch = max(query.shape[0], key.shape[0], value.shape[0])
    query, key, value = (each.expand(batch, -1, -1, -1) for each in (query, key, value))
    seq, length = query.shape[2], key.shape[2]
    mask = torch.ones((seq, length), dtype=torch.bool) if attn_mask is None else attn_mask
    if is_causal:
        mask = mask.tril()
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    mask = mask.expand(mask.shape[0], mask.shape[1], seq, length)
    emit = ops.attention if mask.dtype == torch.bool else ops.attention_bias
    return emit(query, key, value, mask, scale=factor)
