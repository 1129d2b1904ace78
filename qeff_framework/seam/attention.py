"""The attention interface: every attention of a model becomes one dialect op."""

from __future__ import annotations

from typing import Any

import torch

from qeff_framework.dialect import ops
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.scope import current_scope, current_step

#: Tensors that the library's own eager attention accepts and ignores: positions, which are already in the queries and keys, and
#: what only fused kernels read.
_IGNORED_TENSORS = frozenset({"position_ids", "cache_position"})


def attention_interface(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    block_indices: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Implements the attention interface of Transformers (`ALL_ATTENTION_FUNCTIONS`).

    Takes query ``[B, Hq, S, D]``, key and value ``[B, Hkv, C, D]``; returns ``[B, S, Hq, Dv]`` and no weights. Of each head
    (``s_aux [Hq]``) or each head and token (``sinks [B, Hq, S, 1]``), one more logit takes part in the softmax. ``indices
    [B, S, K]`` are the only keys that a token may look at, if the mask lets it, and ``block_indices [B, Hi, S, K]`` the only
    blocks of keys.
    """
    scope = current_scope()
    scope.masks.attention_calls += 1
    unknown = [name for name, value in others.items() if isinstance(value, torch.Tensor)]
    if not _IGNORED_TENSORS.issuperset(unknown):
        raise UnsupportedModelError(f"its attention takes tensors that the dialect has no op for: {unknown}")
    if isinstance(scaling, torch.Tensor):
        query, scale = query * scaling, 1.0
    else:
        scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    mask = attention_mask if attention_mask is not None else _default_mask(query, key, causal=bool(causal))
    if scope.masks.recording and mask.shape[-1] not in (1, key.shape[2]):
        raise UnsupportedModelError(
            f"it asks for an attention mask over {mask.shape[-1]} keys, and its attention reads {key.shape[2]}"
        )
    if block_indices is not None:
        mask = _selected_blocks(module, mask, block_indices, key)
    if indices is not None:
        mask = _selected(mask, indices, key.shape[2])
    if position_bias is not None:
        mask = _biased(mask, position_bias)
    if sinks is not None:
        key, value, mask = _with_sink_key(query, key, value, mask, sinks)
    result = _emit(query, key, value, mask, s_aux, scale, float(softcap or 0.0))
    return result.transpose(1, 2).contiguous(), None


def _emit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    if mask.dtype == torch.bool:
        if sinks is not None:
            return ops.attention_sinks(query, key, value, mask, sinks, scale=scale, softcap=softcap)
        return ops.attention(query, key, value, mask, scale=scale, softcap=softcap)
    if sinks is not None:
        raise UnsupportedModelError("it uses attention sinks together with an additive mask")
    return ops.attention_bias(query, key, value, mask, scale=scale, softcap=softcap)


def _default_mask(query: torch.Tensor, key: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """The mask that a model means when it passes none: causal, or everything."""
    seq, length = query.shape[2], key.shape[2]
    if not causal:
        memory = current_scope().memory
        if memory is not None and length == memory.kv_positions.shape[0]:
            return ops.causal_mask((memory.lengths - 1).expand(-1, seq), memory.kv_positions)
        return torch.ones((1, 1, seq, length), dtype=torch.bool)
    step = current_step()
    if step is not None:
        return ops.causal_mask(step.position_ids, step.kv_positions)
    return ops.causal_mask(torch.arange(seq)[None], torch.arange(length))


def _selected(mask: torch.Tensor, indices: torch.Tensor, slots: int) -> torch.Tensor:
    batch, seq, _ = indices.shape
    selection = torch.zeros((batch, seq, slots), dtype=torch.bool).scatter(2, indices.long(), value=True).unsqueeze(1)
    return mask & selection if mask.dtype == torch.bool else _biased(selection, mask)


def _selected_blocks(module: Any, mask: torch.Tensor, block_indices: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The module's own expansion of blocks to keys, which its library uses where no kernel selects them: bool."""
    positions = current_scope().step
    if positions is None:
        raise UnsupportedModelError("it selects blocks of keys without a cache")
    additive: torch.Tensor = module.indexer.build_block_mask(
        block_indices, mask, key.shape[2], key.dtype, key.device, positions.position_ids
    )
    return additive == 0


def _with_sink_key(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, sinks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One more key and value of zeros: its score is the sink, and it adds nothing to the result."""
    if mask.dtype == torch.bool:
        mask = _biased(mask, torch.zeros((), dtype=query.dtype))
    bias = mask.expand(sinks.shape[0], sinks.shape[1], -1, -1)
    return _one_longer(key), _one_longer(value), torch.cat([bias, sinks.to(bias.dtype)], dim=3)


def _one_longer(states: torch.Tensor) -> torch.Tensor:
    return torch.cat([states, torch.zeros_like(states[:, :, :1])], dim=2)


def _biased(mask: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask + bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min)
