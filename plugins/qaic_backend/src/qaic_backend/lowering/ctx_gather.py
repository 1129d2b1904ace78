"""What an attention reads of a cache becomes ``CtxGather``: of the slots that a step reads, those up to a row's last position.

``KVGather`` and ``KVGatherCB`` say which slots a step reads. An attention that reads the result of a ``KVUpdate`` itself reads
all of them. Slots behind the last position are hidden by the mask anyway; they get an index beyond the cache, for which the
device yields zeros without reading anything.

That holds for tokens that see what their own row has written. Cross-attention sees what an earlier step has written at the
positions of the encoder's tokens: it reads the cache as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qaic_backend.lowering.graph import (
    BEYOND_CACHE,
    CACHE_FUNCTIONS,
    DIALECT,
    Writer,
    attach_function,
    dialect_nodes,
    inputs_of,
)

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
class _Read:
    """A node that reads an updated cache."""

    reader: ir.Node
    update: ir.Node


@dataclass(frozen=True, kw_only=True)
class _Slots:
    #: ``[B, 1, L]``.
    indices: ir.Value
    #: Scalar L.
    length: ir.Value


class CtxGather:
    """Lowers every ``KVGather`` and ``KVGatherCB``, and whatever attention reads of an updated cache. Runs before `CtxScatter`.

    `hidden_index` stands for slots that a row cannot see. In a sub-function the compiler takes no index beyond the cache: there
    it is 0, a slot whose content the mask hides.
    """

    name = "CtxGather"
    version = "2"

    def __init__(self, *, hidden_index: int = BEYOND_CACHE) -> None:
        self._hidden_index = hidden_index
        if hidden_index != BEYOND_CACHE:
            self.version = f"{self.version}, hidden {hidden_index}"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a read was lowered."""
        shared: dict[tuple[ir.Value, object], _Slots] = {}
        gathered: dict[ir.Value, ir.Value] = {}
        used: set[str] = set()
        for read in sorted(_reads(model), key=_place_in(model)):
            write = Writer()
            updated = read.update.outputs[0]
            cache, _, position_ids, *batch_index = inputs_of(read.update)
            if read.reader.op_type == "KVGatherCB":
                slots = self._slots(write, position_ids, inputs_of(read.reader)[2], shared)
                arguments = (updated, *batch_index, slots.indices, slots.length)
                write.replace(read.reader, write.op("CtxGatherCB", *arguments, domain=CACHE_FUNCTIONS))
                used.add(_BODY_CB)
                continue
            used.add(_BODY)
            if read.reader.op_type == "KVGather":
                slots = self._slots(write, position_ids, inputs_of(read.reader)[1], shared)
                arguments = (updated, slots.indices, slots.length)
                write.replace(read.reader, write.op("CtxGather", *arguments, domain=CACHE_FUNCTIONS))
                continue
            if updated not in gathered:
                slots = self._slots(write, position_ids, cache, shared)
                whole = write.op("CtxGather", updated, slots.indices, slots.length, domain=CACHE_FUNCTIONS)
                whole.type, whole.shape = updated.type, updated.shape
                gathered[updated] = whole
                write.insert_before(read.reader)
            for number, value in enumerate(read.reader.inputs):
                if value is updated:
                    read.reader.replace_input_with(number, gathered[updated])
        for body in sorted(used):
            attach_function(model, CACHE_FUNCTIONS, body)
        return bool(used)

    def _slots(
        self,
        write: Writer,
        position_ids: ir.Value,
        source: ir.Value,
        shared: dict[tuple[ir.Value, object], _Slots],
    ) -> _Slots:
        """The slots that `source` stands for: ``kv_positions [L]``, or all of a cache ``[B, H, C, D]``."""
        is_cache = source.shape is not None and len(source.shape) != 1
        known = position_ids, source.shape[2] if is_cache and source.shape is not None else source
        if known in shared:
            return shared[known]
        if is_cache:
            length = write.op("Squeeze", write.op("Shape", source, start=2, end=3))
            slots = write.op("Range", write.int(0), length, write.int(1))
        else:
            length = write.op("Squeeze", write.op("Shape", source))
            slots = source
        last = write.op("ReduceMax", position_ids, write.ints(1), keepdims=1)
        is_seen = write.op("LessOrEqual", slots, last)
        indices = write.op("Where", is_seen, slots, write.int(self._hidden_index))
        shared[known] = _Slots(indices=write.op("Unsqueeze", indices, write.ints(1)), length=length)
        return shared[known]


def _reads(model: ir.Model) -> Iterator[_Read]:
    for update in dialect_nodes(model, "KVUpdate", "KVUpdateCB"):
        positions = inputs_of(update)[2]
        if positions.is_graph_input() and positions.name != _POSITIONS:
            continue
        readers = {use.node for use in update.outputs[0].uses() if use.node.domain == DIALECT}
        for reader in readers:
            is_attention = reader.op_type.startswith("Attention") and update.op_type == "KVUpdate"
            if is_attention or reader.op_type in ("KVGather", "KVGatherCB"):
                yield _Read(reader=reader, update=update)


def _place_in(model: ir.Model) -> Callable[[_Read], tuple[int, int]]:
    """A key that sorts reads by the order of their nodes; what the first one computes is there for the later ones."""
    places = {node: number for number, node in enumerate(model.graph)}
    return lambda read: (places[read.reader], places[read.update])
