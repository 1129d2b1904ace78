"""``KVUpdate`` becomes a scatter of the new tokens, or a product with a one-hot matrix of their positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import KVUpdateNode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import static_dim


class ScatterUpdates(DialectPass[KVUpdateNode]):
    """Lowers each update with a known number of heads to one ``ScatterND``, which writes the new tokens and nothing else.

    A runtime that gives cache and result the same buffer writes S slots a step; the body would copy all of them.
    """

    name = "ScatterUpdates"
    version = "1"
    node_type = KVUpdateNode

    def lower(self, node: KVUpdateNode, edit: GraphEditor) -> ir.Value | None:
        """The updated cache."""
        heads = static_dim(node.cache, 1)
        if heads is None:
            return None
        key = ("targets", node.position_ids, node.batch_index, heads)
        targets: _Targets = edit.once(key, lambda: _targets(edit, node.position_ids, node.batch_index, heads))
        tokens = edit.op("GatherND", node.updates, targets.token, batch_dims=2)
        held = edit.op("GatherND", node.cache, targets.index)
        content = edit.op("Where", targets.written, tokens, held)
        return edit.op("ScatterND", node.cache, targets.index, content)


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """Where the tokens go; B rows, H heads, S tokens a row."""

    #: ``[B,H,S,1]``: the token that is written; padding repeats the row's last token.
    token: ir.Value
    #: ``[B,H,S,3]``: cache row, head and slot, which is 0 in a row of padding.
    index: ir.Value
    #: Bool ``[B,1,1,1]``: the row has a token.
    written: ir.Value


def _targets(edit: GraphEditor, position_ids: ir.Value, batch_index: ir.Value | None, heads: int) -> _Targets:
    """Targets of ``position_ids [B,S]`` in the cache rows ``batch_index [B,1]``, by default 0 .. B-1.

    Duplicates in one scatter may be written in any order, so padding repeats a write that is made anyway: the last token's. In a
    row without tokens it writes to slot 0 what slot 0 holds.
    """
    zero, one = edit.int64(0), edit.int64(1)
    batch, chunk = edit.dim(position_ids, 0), edit.dim(position_ids, 1)
    valid = edit.op("GreaterOrEqual", position_ids, zero)
    numbers = edit.op("Range", zero, edit.op("Squeeze", chunk), one)
    last_token = edit.op("ArgMax", position_ids, axis=1, keepdims=1)
    last_position = edit.op("ReduceMax", position_ids, edit.int64s(1))
    token_of_row = edit.op("Where", valid, numbers, last_token)
    slot_of_row = edit.op("Max", edit.op("Where", valid, position_ids, last_position), zero)
    shape = edit.op("Concat", batch, edit.int64s(heads), chunk, edit.int64s(1), axis=0)
    if batch_index is None:
        rows = edit.op("Range", zero, edit.op("Squeeze", batch), one)
    else:
        rows = edit.op("Reshape", batch_index, edit.int64s(-1))

    def expanded(value: ir.Value, *new_axes: int) -> ir.Value:
        return edit.op("Expand", edit.op("Unsqueeze", value, edit.int64s(*new_axes)), shape)

    row = expanded(rows, 1, 2, 3)
    head = expanded(edit.op("Range", zero, edit.int64(heads), one), 0, 2, 3)
    slot = expanded(slot_of_row, 1, 3)
    return _Targets(
        token=expanded(token_of_row, 1, 3),
        index=edit.op("Concat", row, head, slot, axis=-1),
        written=edit.op("GreaterOrEqual", edit.op("Unsqueeze", last_position, edit.int64s(2, 3)), zero),
    )


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
