"""``KVUpdate`` becomes a product with a one-hot matrix of the positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import KVUpdateNode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import static_dim


class OneHotUpdates(DialectPass[KVUpdateNode]):
    """Lowers each update without a batch index to a product with a one-hot matrix of the positions, for devices without scatters.

    The product is exact in float16: each row of the matrix has a single 1. A padding position equals no slot, so it writes
    nothing; what padding would have written is made zero first, since zero times infinity is no number. (A scatter would count
    its -1 from the end and overwrite the last slot.) Positions are compared as int32.
    """

    name = "OneHotUpdates"
    version = "1"
    node_type = KVUpdateNode

    def lower(self, node: KVUpdateNode, edit: GraphEditor) -> ir.Value | None:
        """The updated cache."""
        capacity = static_dim(node.cache, 2)
        if capacity is None or node.batch_index is not None:
            return None
        key = ("slots", node.position_ids, capacity, node.updates.dtype)
        slots: _Slots = edit.once(key, lambda: _slots(edit, node, capacity))
        updates = node.updates
        if static_dim(updates, 2) != 1:  # A single token that is padding is in no row that is written.
            updates = edit.op("Where", slots.is_token, updates, edit.scalar_like(0.0, updates))
        return edit.op("Where", slots.written, edit.op("MatMul", slots.selection, updates), node.cache)


@dataclass(frozen=True, kw_only=True)
class _Slots:
    #: ``[B,1,C,S]``: 1 where the token goes into the slot.
    selection: ir.Value
    #: Bool ``[B,1,C,1]``: some token goes into the slot.
    written: ir.Value
    #: Bool ``[B,1,S,1]``: the token is no padding.
    is_token: ir.Value


def _slots(edit: GraphEditor, node: KVUpdateNode, capacity: int) -> _Slots:
    positions = edit.cast(node.position_ids, ir.DataType.INT32)
    numbers = edit.array(np.arange(capacity, dtype=np.int32).reshape(1, 1, capacity, 1))
    hits = edit.op("Equal", edit.op("Unsqueeze", positions, edit.int64s(1, 2)), numbers)
    selection = edit.cast(hits, node.updates.dtype or ir.DataType.FLOAT)
    count = edit.op("ReduceMax", selection, edit.int64s(3), keepdims=1)
    zero = edit.array(np.array(0, np.int32))
    return _Slots(
        selection=selection,
        written=edit.op("Greater", count, edit.scalar_like(0.5, count)),
        is_token=edit.op("GreaterOrEqual", edit.op("Unsqueeze", positions, edit.int64s(1, 3)), zero),
    )
