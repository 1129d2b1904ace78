"""A key/value cache of fixed size whose layers write through the dialect op ``KVUpdate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, CacheLayerMixin

from qeff_framework.dialect import ops
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.scope import Step, current_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Sizes of one layer's keys and values. Layers of one model may differ."""

    #: The layer's number in the model; layers without keys of their own are left out.
    index: int
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heads and size of the keys, heads and size of the values."""
        return (self.key_heads, self.key_dim), (self.value_heads, self.value_dim)


class FixedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # the library's __init_subclass__ is untyped
    """Keys ``[B, H, C, D]`` and values ``[B, Hv, C, Dv]`` of one layer; with continuous batching F rows instead of B.

    `ctx_len` is the number of slots that a step reads: C, or fewer with a compute context.

    Both are `None` in a layer that no attention writes to: one that reuses the keys of another layer, or has no attention.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, ctx_len: int, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ctx_len = ctx_len
        self.keys = keys
        self.values = values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers are graph inputs."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new keys and values at the positions of the running step; returns what the step reads, by default all."""
        del args, kwargs
        step = current_step()
        if step is None:
            raise UnsupportedModelError("it writes to a key/value cache outside a step with positions")
        keys, values = self.states()
        self.keys = _written(keys, key_states, step)
        self.values = _written(values, value_states, step)
        return _read(self.keys, step), _read(self.values, step)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they are now."""
        if self.keys is None or self.values is None:
            raise UnsupportedModelError("a layer that wrote nothing to the cache in the probe run does so in the trace")
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Every query may look at every slot that is read; the mask decides."""
        del query_length
        return self.ctx_len, 0

    def get_seq_length(self) -> int:
        """0: positions are graph inputs, the cache counts nothing."""
        return 0

    def get_max_length(self) -> int:
        """The slots that a step reads."""
        return self.ctx_len


def _written(cache: torch.Tensor, states: torch.Tensor, step: Step) -> torch.Tensor:
    if step.batch_index is None:
        return ops.kv_update(cache, states, step.position_ids)
    return ops.kv_update_cb(cache, states, step.position_ids, step.batch_index)


def _read(cache: torch.Tensor, step: Step) -> torch.Tensor:
    if step.batch_index is not None:
        return ops.kv_gather_cb(cache, step.batch_index, step.kv_positions)
    return ops.kv_gather(cache, step.kv_positions) if step.reads_part else cache


class RecordingCache(Cache):
    """The cache of the probe run: each layer gets buffers that fit the first keys and values that it is given."""

    def __init__(self, ctx_len: int) -> None:
        super().__init__(layers=[])
        self.ctx_len = ctx_len
        self.recorded: dict[int, FixedLayer] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes as the fixed cache does."""
        while len(self.layers) <= layer_idx:
            self.layers.append(FixedLayer(self.ctx_len))
        if layer_idx not in self.recorded:
            layer = FixedLayer(self.ctx_len, self._buffer_for(key_states), self._buffer_for(value_states))
            self.layers[layer_idx] = self.recorded[layer_idx] = layer
        return self.recorded[layer_idx].update(key_states, value_states, *args, **kwargs)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The whole buffer, also before the first layer exists."""
        del query_length, layer_idx
        return self.ctx_len, 0

    def shapes(self) -> tuple[LayerShape, ...]:
        """The layers that were written to, in layer order."""
        return tuple(_shape_of(index, *layer.states()) for index, layer in sorted(self.recorded.items()))

    def _buffer_for(self, states: torch.Tensor) -> torch.Tensor:
        step = current_step()
        if step is None or states.dim() != 4 or states.shape[2] != step.position_ids.shape[1]:
            raise UnsupportedModelError(
                f"it writes keys or values of shape {tuple(states.shape)} to the cache, "
                "where only [batch, heads, tokens of this step, size] can be retained"
            )
        batch, heads, _, dim = states.shape
        return states.new_zeros((batch, heads, self.ctx_len, dim))


def _shape_of(index: int, keys: torch.Tensor, values: torch.Tensor) -> LayerShape:
    return LayerShape(
        index=index,
        key_heads=keys.shape[1],
        key_dim=keys.shape[3],
        value_heads=values.shape[1],
        value_dim=values.shape[3],
    )
