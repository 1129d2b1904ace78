"""DeepSeek-V4: cache layers of its own, which hand out a window of tokens whenever a step completes one.

How many windows a step completes depends on where it begins, which differs from row to row. So each token makes the entry of the
window that would end with it, from the tokens before it, which the cache keeps like the columns of a convolution; the entry goes
to the slot of the token. Those of tokens that do end a window are the model's, and the masks show no others.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from qeff_framework.dialect import ops
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.scope import Step, current_step


def adapt(shell: PreTrainedModel) -> None:
    """Replaces the forward of each compressor, and of each attention what it sees of the cache."""
    module: Any
    for module in shell.modules():
        if hasattr(module, "compress_rate") and not hasattr(module, "scorer"):
            module.forward = MethodType(_compressor, module)
        elif hasattr(module, "compressor") and hasattr(module, "sinks"):
            module.forward = MethodType(_attention_with(type(module).forward), module)


class _OneKeyValue:
    """The cache of an attention whose keys are its values: a second copy would be kept for nothing."""

    def __init__(self, cache: SeamCache) -> None:
        self.cache = cache

    def update(self, states: torch.Tensor, _: torch.Tensor, layer: int, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        held = self.cache.write("key", layer, states)
        return held, held


def _attention_with(forward: Any) -> Any:
    def attention(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = "cache" if "cache" in kwargs else "past_key_values"  # Transformers 5.24 renamed it.
        return forward(self, *args, **{**kwargs, name: _OneKeyValue(kwargs[name])})

    return attention


def _compressor(
    self: Any, hidden: torch.Tensor, q_residual: torch.Tensor, positions: torch.Tensor, cache: _OneKeyValue, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries ``[B, 1, C, D]`` of the slots, and which of them a token sees, bool ``[B, 1, S, C]``."""
    step = current_step()
    if step is None:
        raise UnsupportedModelError("it compresses the keys of a cache that it does not have")
    entries = cache.cache.write("compressed_key", layer, _entries(self, hidden, positions, cache.cache, layer, 0))
    visible = ops.causal_mask(step.position_ids, step.kv_positions) & _ends_window(self, step)
    if hasattr(self, "indexer"):
        visible = visible & _selected(self.indexer, hidden, q_residual, positions, cache.cache, layer, visible)
    return entries, visible


def _ends_window(compressor: Any, step: Step) -> torch.Tensor:
    return (step.kv_positions + 1) % compressor.compress_rate == 0


def _selected(
    indexer: Any,
    hidden: torch.Tensor,
    q_residual: torch.Tensor,
    positions: torch.Tensor,
    cache: SeamCache,
    layer: int,
    visible: torch.Tensor,
) -> torch.Tensor:
    """The entries of the highest scores among the `visible` ones of each token: bool ``[B, 1, S, C]``."""
    keys = cache.write("index_key", layer, _entries(indexer, hidden, positions, cache, layer, 1)).squeeze(1)
    cos, sin = indexer.rotary_emb(hidden, position_ids=positions, layer_type=indexer.rope_layer_type)
    queries = indexer.q_b_proj(q_residual).unflatten(-1, (-1, indexer.head_dim))
    queries = _rotated(indexer, queries.transpose(1, 2), cos, sin).transpose(1, 2)
    scores = indexer.scorer(queries, keys, hidden).masked_fill(~visible.squeeze(1), float("-inf"))
    # As many columns of nothing as are selected: a context may have fewer slots.
    scores = functional.pad(scores, (0, indexer.index_topk), value=float("-inf"))
    best = scores.topk(indexer.index_topk, dim=-1).indices
    selection = torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, value=True)
    return selection[..., : -indexer.index_topk].unsqueeze(1)


def _entries(
    compressor: Any, hidden: torch.Tensor, positions: torch.Tensor, cache: SeamCache, layer: int, number: int
) -> torch.Tensor:
    """The entry ``[B, 1, S, D]`` of the window that ends with each token."""
    rate, size = compressor.compress_rate, compressor.head_dim
    bias = compressor.position_bias
    overlaps = bias.shape[1] == 2 * size
    width = 2 * rate if overlaps else rate
    values, gates = _windows(compressor, hidden, width, cache, layer, number)
    if overlaps:
        # The tokens of the window before take part with the first half of their features; no window is before the first one.
        gates = torch.cat([gates[:, :, :rate, :size] + bias[:, :size], gates[:, :, rate:, size:] + bias[:, size:]], dim=2)
        values = torch.cat([values[:, :, :rate, :size], values[:, :, rate:, size:]], dim=2)
        in_first = (positions < rate)[:, :, None, None] & (torch.arange(width) < rate)[:, None]
        gates = gates.masked_fill(in_first, float("-inf"))
    else:
        gates = gates + bias
    compressed = compressor.kv_norm((values * gates.softmax(dim=2, dtype=torch.float32)).sum(dim=2))
    starts = positions // rate * rate
    cos, sin = compressor.rotary_emb(compressed, position_ids=starts, layer_type=compressor.rope_layer_type)
    return _rotated(compressor, compressed.unsqueeze(1), cos, sin)


def _windows(
    compressor: Any, hidden: torch.Tensor, width: int, cache: SeamCache, layer: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and gates of the `width` tokens that end with each token, each ``[B, S, width, features]``."""
    states = torch.cat([compressor.kv_proj(hidden), compressor.gate_proj(hidden)], dim=-1).transpose(1, 2)
    columns = cache.update_conv_state(states, layer, number, conv_kernel_size=width)
    if not cache.has_previous_state(layer):
        columns = functional.pad(states, (width, 0))
    windows = columns.transpose(1, 2)[:, 1:].unsqueeze(2)
    while (length := windows.shape[2]) < width:
        # A window of `length` tokens grows by the last ones of the window that begins `more` tokens behind it.
        more = min(length, width - length)
        windows = torch.cat([windows[:, :-more], windows[:, more:, -more:]], dim=2)
    values, gates = windows.chunk(2, dim=-1)
    return values, gates


def _rotated(module: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    library: Any = inspect.getmodule(type(module))
    rotated: torch.Tensor = library.apply_rotary_pos_emb(states, cos, sin)
    return rotated
