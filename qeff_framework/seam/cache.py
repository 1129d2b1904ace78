"""The cache that an exported model writes to: every state is a graph input and a graph output.

Keys and values have a fixed size and are written through the dialect op ``KVUpdate``; convolution and recurrent states of
state-space and linear-attention layers are small tensors that a step replaces as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from qeff_framework.dialect import ops
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.loop_recorder import LoopRecorder
from qeff_framework.seam.scope import Step, current_scope, current_step
from qeff_framework.seam.states import CROSS, Role, StateId, StateShape


class _OwnKind:
    """The kind by which a model finds the cache layers that it has classes of its own for. The library asks the class alone."""

    def __get__(self, layer: SeamLayer | None, owner: type[SeamLayer]) -> None:
        if layer is not None:
            raise UnsupportedModelError(
                "its code looks for cache layers of a kind of its own, whose rule of which keys stay is no part of a program"
            )


class SeamLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # the library's __init_subclass__ is untyped
    """One layer's view of the cache. A layer without states reuses those of another one, or keeps none."""

    is_compileable = True
    is_sliding = False
    _layer_type: Any = _OwnKind()

    def __init__(self, cache: SeamCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache
        self.index = index
        self.is_initialized = True

    @property
    def keys(self) -> torch.Tensor | None:
        """What the step reads of the keys, `None` before the layer has any."""
        return self.cache.read("key", self.index)

    @keys.setter
    def keys(self, value: torch.Tensor | None) -> None:
        """The library clears it in its constructor."""

    @property
    def values(self) -> torch.Tensor | None:
        """What the step reads of the values, `None` before the layer has any."""
        return self.cache.read("value", self.index)

    @values.setter
    def values(self, value: torch.Tensor | None) -> None:
        """The library clears it in its constructor."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers are graph inputs."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new keys and values at the positions of the running step; returns what the step reads, by default all."""
        del args, kwargs
        return self.cache.write("key", self.index, key_states), self.cache.write("value", self.index, value_states)

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """The same for the keys ``[B, S, D]`` by which a layer selects its keys."""
        return self.cache.write("index_key", self.index, indexer_key_states.unsqueeze(1)).squeeze(1)

    def update_index(self, index_keys: torch.Tensor) -> torch.Tensor:
        """The same for keys ``[B, 1, S, D]`` with an axis of heads."""
        return self.cache.write("index_key", self.index, index_keys)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Every query may look at every slot that is read; the mask decides."""
        del query_length
        return self.cache.ctx_len, 0

    def get_seq_length(self) -> int:
        """0: positions are graph inputs, the cache counts nothing."""
        return 0

    def get_max_length(self) -> int:
        """The slots that a step reads."""
        return self.cache.ctx_len


class _Layers(list[Any]):
    """The layers that have written to a cache so far."""

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index)
        except IndexError as error:
            raise UnsupportedModelError(
                f"its code looks into layer {index} of the cache before that layer has written to it; what it keeps there is no "
                "state of a program"
            ) from error


class SeamCache(Cache):
    """States by layer and role.

    A recording cache (`states` is `None`) is that of the probe run: it is empty, as at the start of a text, and makes a state
    that fits the first tensor that a layer writes. Any other cache holds the states of the graph and knows no others.

    With `reads_blocks` every step may read tokens that see each other, which some models allow the first step alone. The keys and
    values of `cross_layers` belong to what the step's memory holds, not to its tokens.
    """

    def __init__(
        self,
        ctx_len: int,
        states: Mapping[StateId, torch.Tensor] | None = None,
        loops: LoopRecorder | None = None,
        *,
        reads_blocks: bool = False,
        cross_layers: Collection[int] = (),
    ) -> None:
        super().__init__(layers=_Layers())
        self._cross_layers = frozenset(cross_layers)
        #: Slots that a step reads.
        self.ctx_len = ctx_len
        self.recording = states is None
        #: What the library asks of it: whether the text has begun in an earlier step.
        self.has_begun = bool(states) and not reads_blocks
        self.states = dict(states or {})
        self._loops = loops
        for state in self.states:
            self._layer(state.layer)

    # --- keys and values ----------------------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SeamLayer.update`."""
        return self._layer(layer_idx).update(key_states, value_states, *args, **kwargs)

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """See `SeamLayer.update_indexer`."""
        return self._layer(layer_idx).update_indexer(indexer_key_states)

    def write(self, role: Role, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Writes ``tokens [B, H, S, D]`` of the step to their slots; returns what the step reads."""
        step, state = self._written_step(layer), self._slotted(role, layer)
        if self.recording and state not in self.states:
            if tokens.dim() != 4 or tokens.shape[2] != step.position_ids.shape[1]:
                raise UnsupportedModelError(
                    f"it writes keys or values of shape {tuple(tokens.shape)} to the cache, "
                    "where only [batch, heads, tokens of this step, size] can be retained"
                )
            batch, heads, _, dim = tokens.shape
            slots = step.kv_positions.shape[0] if state.role in CROSS else self.ctx_len
            self.states[state] = tokens.new_zeros((batch, heads, slots, dim))
        self.states[state] = _written(self._held(state), tokens, step)
        return _read(self.states[state], step)

    def read(self, role: Role, layer: int) -> torch.Tensor | None:
        """What the step reads of a state, `None` before the layer has any."""
        state = self.states.get(self._slotted(role, layer))
        return None if state is None else _read(state, self._written_step(layer))

    def _is_cross(self, layer: int) -> bool:
        return layer in self._cross_layers

    def _slotted(self, role: Role, layer: int) -> StateId:
        if self._is_cross(layer):
            return StateId(layer=layer, role="key_cross" if role == "key" else "value_cross")
        return StateId(layer=layer, role=role)

    def _written_step(self, layer: int) -> Step:
        """The tokens whose keys and values are written."""
        if not self._is_cross(layer):
            return _step()
        memory = current_scope().memory
        if memory is None:
            raise UnsupportedModelError("it uses its cross-attention cache outside a step with an encoder")
        step = current_step()
        return Step(
            position_ids=memory.position_ids,
            kv_positions=memory.kv_positions,
            batch_index=None if step is None else step.batch_index,
        )

    # --- convolution and recurrent states -------------------------------------------------------------------------------

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The last columns ``[B, N, kernel]`` that the convolution has seen, `None` in a recording."""
        return self._previous(StateId(layer=layer_idx, role="conv", number=state_idx))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Appends the columns ``[B, N, S]`` of the step; returns the kept ones and these, ``[B, N, kernel + S]``."""
        step, state = _step(), StateId(layer=layer_idx, role="conv", number=state_idx)
        self._note(state)
        if self.recording:
            width = conv_kernel_size or conv_states.shape[-1]
            self.states.setdefault(state, conv_states.new_zeros((*conv_states.shape[:-1], width)))
            return torch.nn.functional.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))
        kept = self._held(state)
        if step.looped:
            everything = torch.cat([kept, conv_states], dim=-1)
            self.states[state] = everything[..., -kept.shape[-1] :]
            return everything
        if conv_states.dim() != 3 or conv_states.shape[-1] != step.position_ids.shape[1]:
            raise UnsupportedModelError(
                f"it keeps columns of shape {tuple(conv_states.shape)} for a convolution, "
                "where only [batch, channels, tokens of this step] can be retained"
            )
        everything = torch.cat([_unless_new(kept, step.position_ids), conv_states], dim=-1)
        self.states[state] = _columns_before_padding(everything, kept.shape[-1], step.position_ids)
        return everything

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The recurrent state, `None` in a recording."""
        return self._previous(StateId(layer=layer_idx, role="recurrent", number=state_idx))

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Replaces the recurrent state; inside a loop over the tokens only, where padding can leave it as it was."""
        state = StateId(layer=layer_idx, role="recurrent", number=state_idx)
        self._note(state)
        if not self.recording:
            self._held(state)
            if not _step().looped:
                raise UnsupportedModelError("a layer keeps a recurrent state that it did not keep in the probe run")
        self.states[state] = recurrent_states
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether states exist before the step: not in a recording."""
        del layer_idx, state_idx
        return not self.recording

    def is_recording_past(self, layer_idx: int) -> bool:
        """Nothing is rolled back."""
        del layer_idx
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether the text has begun in an earlier step."""
        return self.has_begun

    # --- sizes --------------------------------------------------------------------------------------------------------

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """See `SeamLayer.get_mask_sizes`; asked before the first layer exists."""
        del query_length, layer_idx
        return self.ctx_len, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See `SeamLayer.get_seq_length`."""
        del layer_idx
        return 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """See `SeamLayer.get_max_length`."""
        del layer_idx
        return self.ctx_len

    def shapes(self) -> tuple[StateShape, ...]:
        """The states, those of a layer next to each other, in the order in which it wrote them first."""
        ordered = sorted(self.states, key=lambda state: state.layer)
        return tuple(StateShape(id=state, sizes=tuple(self.states[state].shape[1:])) for state in ordered)

    def _layer(self, index: int) -> SeamLayer:
        while len(self.layers) <= index:
            self.layers.append(SeamLayer(self, len(self.layers)))
        layer = self.layers[index]
        if not isinstance(layer, SeamLayer):
            raise UnsupportedModelError(f"it puts a cache layer of its own, {type(layer).__name__}, into the cache")
        return layer

    def _held(self, state: StateId) -> torch.Tensor:
        if state not in self.states:
            raise UnsupportedModelError(f"it writes to {state.name} in the trace, which it did not do in the probe run")
        return self.states[state]

    def _previous(self, state: StateId) -> torch.Tensor | None:
        self._layer(state.layer)
        self._note(state)
        return None if self.recording else self.states.get(state)

    def _note(self, state: StateId) -> None:
        if self._loops is not None:
            self._loops.note(state)


class CrossCache(SeamCache):
    """The keys and values of cross-attention: written where the step has tokens for the encoder, read in every step."""

    def _is_cross(self, layer: int) -> bool:
        del layer
        return True


def _step() -> Step:
    step = current_step()
    if step is None:
        raise UnsupportedModelError("it uses its cache outside a step with positions")
    return step


def _written(cache: torch.Tensor, states: torch.Tensor, step: Step) -> torch.Tensor:
    if step.batch_index is None:
        return ops.kv_update(cache, states, step.position_ids)
    return ops.kv_update_cb(cache, states, step.position_ids, step.batch_index)


def _read(cache: torch.Tensor, step: Step) -> torch.Tensor:
    if step.batch_index is not None:
        return ops.kv_gather_cb(cache, step.batch_index, step.kv_positions)
    return ops.kv_gather(cache, step.kv_positions) if step.reads_part else cache


def _unless_new(state: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """The state, or zeros in rows whose text starts with this step: position 0 begins anew, as it does for keys."""
    return select_rows(position_ids[:, 0] != 0, state, torch.zeros_like(state))


def select_rows(rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Row b of `first` where ``rows [B]`` is true, else of `second`. A selection, since a product would keep a NaN."""
    return torch.where(rows.reshape(-1, *(1,) * (first.dim() - 1)), first, second)


def _columns_before_padding(columns: torch.Tensor, width: int, position_ids: torch.Tensor) -> torch.Tensor:
    """The last `width` of ``columns [B, N, width + S]`` that come before the padding at the end of a row."""
    tokens = (position_ids >= 0).sum(dim=1, keepdim=True)
    index = tokens + torch.arange(width)
    return columns.gather(2, index.unsqueeze(1).expand(-1, columns.shape[1], -1))
