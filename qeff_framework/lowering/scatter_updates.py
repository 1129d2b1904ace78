"""``KVUpdate`` and ``KVUpdateCB`` become a scatter of the new tokens."""

from __future__ import annotations

from dataclasses import dataclass

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
