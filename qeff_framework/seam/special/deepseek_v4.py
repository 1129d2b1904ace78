"""DeepSeek-V4: compresses blocks of tokens in cache layers of its own, whenever a step happens to complete some.

See `qeff_framework.seam.windows` for what a graph can do instead. Its attention reads one tensor as keys and values.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.windows import block_ends, highest, positioned_step, windows


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of each compressor, and what each attention sees of the cache."""
    module: Any
    for module in model.modules():
        if hasattr(module, "compress_rate") and not hasattr(module, "scorer"):
            module.forward = MethodType(_compressor, module)
        elif hasattr(module, "compressor") and hasattr(module, "sinks"):
            module.forward = MethodType(_attention_with(type(module).forward), module)


class _KeysAreValues:
    """The cache of an attention whose values are its keys: a second copy would be kept for nothing."""

    def __init__(self, cache: SeamCache) -> None:
        self.states = cache

    def update(self, keys: torch.Tensor, _: torch.Tensor, layer: int, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        held = self.states.write("key", layer, keys)
        return held, held


def _attention_with(forward: Any) -> Any:
    def attention(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = "cache" if "cache" in kwargs else "past_key_values"  # Transformers 5.24 renamed it.
        return forward(self, *args, **{**kwargs, name: _KeysAreValues(kwargs[name])})

    return attention


def _compressor(
    self: Any,
    hidden: torch.Tensor,
    q_residual: torch.Tensor,
    positions: torch.Tensor,
    cache: _KeysAreValues,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The compressed keys ``[B, 1, C, D]``, and which of them each token sees, bool ``[B, 1, S, C]``."""
    states = cache.states
    keys = states.write("compressed_key", layer, _compressed(self, hidden, positions, states, layer, 0))
    visible = block_ends(positioned_step(), self.compress_rate)
    if hasattr(self, "indexer"):
        scores = _scores(self.indexer, hidden, q_residual, positions, states, layer)
        visible = highest(scores, visible, self.indexer.index_topk)
    return keys, visible


def _scores(
    indexer: Any,
    hidden: torch.Tensor,
    q_residual: torch.Tensor,
    positions: torch.Tensor,
    states: SeamCache,
    layer: int,
) -> torch.Tensor:
    """What each token thinks of each slot, by a compression of its own: ``[B, S, C]``."""
    keys = states.write("index_key", layer, _compressed(indexer, hidden, positions, states, layer, 1))
    cos, sin = indexer.rotary_emb(hidden, position_ids=positions, layer_type=indexer.rope_layer_type)
    queries = indexer.q_b_proj(q_residual).unflatten(-1, (-1, indexer.head_dim)).transpose(1, 2)
    scores: torch.Tensor = indexer.scorer(_rotated(indexer, queries, cos, sin).transpose(1, 2), keys.squeeze(1), hidden)
    return scores


def _compressed(
    compressor: Any, hidden: torch.Tensor, positions: torch.Tensor, states: SeamCache, layer: int, number: int
) -> torch.Tensor:
    """The key ``[B, 1, S, D]`` of the block that would end with each token."""
    rate, size, bias = compressor.compress_rate, compressor.head_dim, compressor.position_bias
    overlaps = bias.shape[1] == 2 * size
    both = torch.cat([compressor.kv_proj(hidden), compressor.gate_proj(hidden)], dim=-1)
    values, gates = windows(states, both, 2 * rate if overlaps else rate, layer, number).chunk(2, dim=-1)
    if overlaps:
        # The block before takes part with the first half of its features, unless there is none.
        before, own = (slice(rate), slice(size)), (slice(rate, None), slice(size, None))
        values = torch.cat([values[:, :, a, b] for a, b in (before, own)], dim=2)
        earlier, current = (gates[:, :, a, b] + bias[:, b] for a, b in (before, own))
        earlier = earlier.masked_fill((positions < rate)[:, :, None, None], float("-inf"))
        gates = torch.cat([earlier, current], dim=2)
    else:
        gates = gates + bias
    compressed = compressor.kv_norm((values * gates.softmax(dim=2, dtype=torch.float32)).sum(dim=2))
    starts = positions // rate * rate
    cos, sin = compressor.rotary_emb(compressed, position_ids=starts, layer_type=compressor.rope_layer_type)
    return _rotated(compressor, compressed.unsqueeze(1), cos, sin)


def _rotated(module: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    library: Any = inspect.getmodule(type(module))
    rotated: torch.Tensor = library.apply_rotary_pos_emb(states, cos, sin)
    return rotated
