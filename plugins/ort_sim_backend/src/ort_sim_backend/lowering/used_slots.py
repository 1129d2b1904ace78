"""With continuous batching a step reads the slots of its rows up to the last one that a row of it uses, not the whole cache.

What stands behind that slot no token of the step sees, so the result is the same. Where all slots are read, a step takes as long
as the context, however short the texts are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qeff_framework.lowering import (
    AttentionNode,
    CausalMaskNode,
    GraphEditor,
    GraphPass,
    KVGatherNode,
    constant_array,
    dialect_nodes,
    made_by,
    operand,
    readers,
    same_dim,
    static_dim,
)

_SLOTS = 2


class UsedSlots(GraphPass):
    """Lowers each ``KVGatherCB`` of a whole cache that causal attention alone reads."""

    name = "UsedSlots"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a read was shortened."""
        found = list(_reads(model))
        for read in found:
            _shorten(model, read)
        return bool(found)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Everything that counts the slots of a cache by one ``Range``."""

    kv_positions: ir.Value
    position_ids: ir.Value
    gathers: list[KVGatherNode]
    masks: list[CausalMaskNode]


def _reads(model: ir.Model) -> Iterator[_Read]:
    gathers: dict[ir.Value, list[KVGatherNode]] = {}
    for gather in dialect_nodes(model, KVGatherNode):
        gathers.setdefault(gather.kv_positions, []).append(gather)
    masks: dict[ir.Value, list[CausalMaskNode]] = {}
    for mask in dialect_nodes(model, CausalMaskNode):
        masks.setdefault(mask.kv_positions, []).append(mask)
    attention = {each.node: each for each in dialect_nodes(model, AttentionNode)}
    for value, those in gathers.items():
        read = _Read(
            kv_positions=value,
            position_ids=masks[value][0].position_ids if value in masks else value,
            gathers=those,
            masks=masks.get(value, []),
        )
        if read.masks and _is_short(read, attention):
            yield read


def _is_short(read: _Read, attention: dict[ir.Node, AttentionNode]) -> bool:
    """The slots are numbered from 0, all that counts them is known, and attention is the only reader."""
    counter = made_by(read.kv_positions, "Range")
    if counter is None:
        return False
    start, step = (constant_array(operand(counter, index)) for index in (0, 2))
    if start is None or step is None or (start.item(), step.item()) != (0, 1):
        return False
    known = {each.node for each in (*read.gathers, *read.masks)}
    if readers(read.kv_positions) != known or any(mask.position_ids is not read.position_ids for mask in read.masks):
        return False
    gathered = {gather.output for gather in read.gathers}
    seen = {mask.output for mask in read.masks}
    users = set().union(*(readers(value) for value in (*gathered, *seen)))
    return all(
        node in attention
        and attention[node].key in gathered
        and attention[node].value in gathered
        and attention[node].mask in seen
        for node in users
    ) and all(_is_whole(gather) for gather in read.gathers)


def _is_whole(gather: KVGatherNode) -> bool:
    sizes = [static_dim(gather.cache, axis) for axis in (1, 3)]
    return gather.batch_index is not None and None not in sizes and same_dim(gather.cache, 2, gather.kv_positions, 0)


def _shorten(model: ir.Model, read: _Read) -> None:
    counter = read.kv_positions.producer()
    if counter is None:
        raise ValueError(f"{read.kv_positions.name} has no producer")
    edit = GraphEditor(model, counter)
    one, zero = edit.int64(1), edit.int64(0)
    used = edit.op("Max", edit.op("Add", edit.op("ReduceMax", read.position_ids, keepdims=0), one), one)
    positions = edit.op("Range", zero, edit.op("Min", used, operand(counter, 1)), one)
    positions.shape = ir.Shape([None])
    for mask in read.masks:
        mask.node.replace_input_with(1, positions)
        mask.output.shape = _with_slots(mask.output, -1)
    shared: dict[Hashable, Any] = {}
    for gather in read.gathers:
        edit = GraphEditor(model, gather.node, shared)
        rows = _rows(edit, gather, positions)
        flat = edit.op("Reshape", gather.cache, edit.int64s(-1, static_dim(gather.cache, 3) or 0))
        found = edit.op("Gather", flat, rows, axis=0)
        found.type, found.shape = gather.output.type, _with_slots(gather.output, _SLOTS)
        edit.replace(gather.node, found)


def _rows(edit: GraphEditor, gather: KVGatherNode, positions: ir.Value) -> ir.Value:
    """Numbers ``[B, H, L]`` of what is read in the cache ``[F, H, C, D]`` as ``[F * H * C, D]``."""
    heads = static_dim(gather.cache, 1) or 0
    batch_index = gather.batch_index

    def made() -> ir.Value:
        slots = edit.dim(gather.cache, _SLOTS)
        first = edit.op("Add", edit.op("Mul", batch_index, edit.int64(heads)), edit.array(np.arange(heads)[None]))
        starts = edit.op("Unsqueeze", edit.op("Mul", first, slots), edit.int64s(-1))
        return edit.op("Add", starts, positions)

    size = str(gather.cache.shape[_SLOTS]) if gather.cache.shape is not None else ""
    found: ir.Value = edit.once(("rows", batch_index, heads, size), made)
    return found


def _with_slots(value: ir.Value, axis: int) -> ir.Shape | None:
    """The shape with an unknown number of slots."""
    if value.shape is None:
        return None
    dims: list[Any] = list(value.shape)
    dims[axis] = None
    return ir.Shape(dims)
