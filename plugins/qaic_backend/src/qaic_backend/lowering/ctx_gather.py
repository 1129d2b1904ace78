"""What an attention reads of a cache becomes ``CtxGather``: of the slots that a step reads, those up to a row's last position.

``KVGather`` and ``KVGatherCB`` say which slots a step reads. An attention that reads the result of a ``KVUpdate`` itself reads
all of them. Slots behind the last position are hidden by the mask anyway; they get an index beyond the cache, for which the
device yields zeros without reading anything.

That holds for tokens that see what their own row has written. Cross-attention sees what an earlier step has written at the
positions of the encoder's tokens: it reads the cache as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from qaic_backend.lowering.device import BEYOND_CACHE, CACHE_FUNCTIONS
from qeff_framework.lowering import AttentionNode, GraphEditor, GraphPass, KVGatherNode, KVUpdateNode

# `data` has the dimensions B, H, C, D; `ctx_indices` B, 1, L; `comp_ctx_len` is L. The length comes from a shape: in a
# sub-function the compiler takes no other one.
_BODY = """
CtxGather (data, ctx_indices, comp_ctx_len) => (result)
{
    component_axis = Constant <value_ints = [3]> ()
    row_shape = Shape <start = 0, end = 2> (data)
    length = Shape <start = 2, end = 3> (ctx_indices)
    target_shape = Concat <axis = 0> (row_shape, length)
    expanded = Expand (ctx_indices, target_shape)
    indices = Unsqueeze (expanded, component_axis)
    result = GatherND <batch_dims = 2> (data, indices)
}
"""

# `data` has the dimensions F, H, C, D; `batch_index` B, 1.
_BODY_CB = """
CtxGatherCB (data, batch_index, ctx_indices, comp_ctx_len) => (result)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    batch_shape = Constant <value_ints = [-1, 1, 1]> ()
    head_shape = Constant <value_ints = [1, -1, 1]> ()
    component_axis = Constant <value_ints = [3]> ()
    batch_size = Shape <start = 0, end = 1> (ctx_indices)
    head_size = Shape <start = 1, end = 2> (data)
    length = Shape <start = 2, end = 3> (ctx_indices)
    target_shape = Concat <axis = 0> (batch_size, head_size, length)
    head_count = Squeeze (head_size)
    head_numbers = Range (zero, head_count, one)
    batch_column = Reshape (batch_index, batch_shape)
    head_column = Reshape (head_numbers, head_shape)
    batches = Expand (batch_column, target_shape)
    heads = Expand (head_column, target_shape)
    slots = Expand (ctx_indices, target_shape)
    batch_part = Unsqueeze (batches, component_axis)
    head_part = Unsqueeze (heads, component_axis)
    slot_part = Unsqueeze (slots, component_axis)
    indices = Concat <axis = 3> (batch_part, head_part, slot_part)
    result = GatherND (data, indices)
}
"""


#: Where the decoder's tokens are; updates at other positions are those of an encoder's output.
_POSITIONS = "position_ids"


@dataclass(frozen=True, kw_only=True)
class _Slots:
    #: ``[B, 1, L]``.
    indices: ir.Value
    #: Scalar L.
    length: ir.Value


class CtxGather(GraphPass):
    """Lowers every ``KVGather`` and ``KVGatherCB``, and whatever attention reads of an updated cache. Runs before `CtxScatter`.

    `hidden_index` stands for slots that a row cannot see. In a sub-function the compiler takes no index beyond the cache: there
    it is 0, a slot whose content the mask hides.
    """

    name = "CtxGather"
    version = "3"

    def __init__(self, *, hidden_index: int = BEYOND_CACHE) -> None:
        self._hidden_index = hidden_index
        if hidden_index != BEYOND_CACHE:
            self.version = f"{self.version}, hidden {hidden_index}"

    def run(self, model: ir.Model) -> bool:
        """Says whether a read was lowered."""
        shared: dict[Hashable, Any] = {}
        lowered = False
        # In graph order: what the first reader computes is there for the later ones.
        for reader in list(model.graph):
            for update in _read_updates(reader):
                self._lower(GraphEditor(model, reader, shared), reader, update)
                lowered = True
        return lowered

    def _lower(self, edit: GraphEditor, reader: ir.Node, update: KVUpdateNode) -> None:
        updated = update.output
        if KVGatherNode.views(reader):
            read = KVGatherNode.of(reader)
            slots = self._slots(edit, update.position_ids, read.kv_positions)
            edit.replace(reader, _gather(edit, updated, slots, read.batch_index))
            return
        slots = self._slots(edit, update.position_ids, update.cache)
        whole = edit.once(("whole", updated), lambda: _gather(edit, updated, slots, None))
        for number, value in enumerate(reader.inputs):
            if value is updated:
                reader.replace_input_with(number, whole)

    def _slots(self, edit: GraphEditor, position_ids: ir.Value, source: ir.Value) -> _Slots:
        """The slots that `source` stands for: ``kv_positions [L]``, or all of a cache ``[B, H, C, D]``."""
        is_cache = source.shape is not None and len(source.shape) != 1
        capacity = source.shape[2] if is_cache and source.shape is not None else source

        def make() -> _Slots:
            if is_cache:
                length = edit.op("Squeeze", edit.dim(source, 2))
                slots = edit.op("Range", edit.int64(0), length, edit.int64(1))
            else:
                length = edit.op("Squeeze", edit.op("Shape", source))
                slots = source
            last = edit.op("ReduceMax", position_ids, edit.int64s(1), keepdims=1)
            is_seen = edit.op("LessOrEqual", slots, last)
            indices = edit.op("Where", is_seen, slots, edit.int64(self._hidden_index))
            return _Slots(indices=edit.op("Unsqueeze", indices, edit.int64s(1)), length=length)

        slots: _Slots = edit.once(("slots", position_ids, capacity), make)
        return slots


def _gather(edit: GraphEditor, cache: ir.Value, slots: _Slots, batch_index: ir.Value | None) -> ir.Value:
    if batch_index is None:
        return edit.call(_BODY, CACHE_FUNCTIONS, cache, slots.indices, slots.length, like=cache)
    return edit.call(_BODY_CB, CACHE_FUNCTIONS, cache, batch_index, slots.indices, slots.length)


def _read_updates(reader: ir.Node) -> Iterator[KVUpdateNode]:
    """The updates whose result `reader` reads, each once, as far as their reading is lowered."""
    if not KVGatherNode.views(reader) and not AttentionNode.views(reader):
        return
    for value in dict.fromkeys(value for value in reader.inputs if value is not None):
        update = KVUpdateNode.making(value)
        if update is None or (AttentionNode.views(reader) and update.batch_index is not None):
            continue
        if update.position_ids.is_graph_input() and update.position_ids.name != _POSITIONS:
            continue
        yield update
