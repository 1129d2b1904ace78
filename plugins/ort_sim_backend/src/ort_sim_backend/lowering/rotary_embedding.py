"""The rotation of queries and keys by their positions becomes one RotaryEmbedding instead of Slice, Neg, Concat, Mul and Add.

Found by what it computes: ``x * cos + rotated(x) * sin``, where ``rotated`` puts the negated second half in front of the first
one and both halves of the sines and cosines are the same. The kernel reads sines and cosines from tables. Here a table has a row
for each token of the step, with the values that the graph computes, so every kind of frequencies is kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ort_sim_backend.lowering.kernels import CONTRIB
from ort_sim_backend.lowering.rotations import readings
from qeff_framework.lowering import GraphEditor, GraphPass, constant_array, made_by, operand, same_dim, static_dim

#: Ops whose result repeats along the last axis when their operands do.
_ELEMENTWISE = ("Add", "Cast", "Cos", "Identity", "Mul", "Sin", "Unsqueeze", "Where")


class RotaryEmbedding(GraphPass):
    """Lowers each rotation of ``[B, H, S, D]`` whose sines and cosines are the same for all heads."""

    name = "RotaryEmbedding"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether a rotation was lowered."""
        shared: dict[Hashable, Any] = {}
        found = [(node, match) for node in model.graph if (match := _match(node)) is not None]
        for node, match in found:
            edit = GraphEditor(model, node, shared)
            tables = [_table(edit, value) for value in (match.cosines, match.sines)]
            edit.replace(
                node, edit.op("RotaryEmbedding", match.states, _row_numbers(edit, match), *tables, domain=CONTRIB)
            )
        return bool(found)


@dataclass(frozen=True, kw_only=True)
class _Match:
    #: ``[B, H, S, D]``
    states: ir.Value
    #: ``[B, S, D]``, or ``[1, S, D]`` where all rows have the same positions
    cosines: ir.Value
    sines: ir.Value


def _match(node: ir.Node) -> _Match | None:
    if node.domain or node.op_type != "Add":
        return None
    for one in readings(node):
        cosines, sines = (_same_for_all_heads(value) for value in (one.cosines, one.sines))
        size = static_dim(one.states, 3)
        if size is None or size % 2 or cosines is None or sines is None:
            continue
        if _is_rotated(one.turned, one.states, size // 2) and all(
            _halves_are_equal(each, size) for each in (cosines, sines)
        ):
            return _Match(states=one.states, cosines=cosines, sines=sines)
    return None


def _same_for_all_heads(value: ir.Value) -> ir.Value | None:
    """The ``[B, S, D]`` that `value` repeats for each head."""
    node = made_by(value, "Unsqueeze")
    if node is None or (axes := constant_array(operand(node, 1))) is None or axes.tolist() != [1]:
        return None
    source = operand(node, 0)
    return source if source.shape is not None and len(source.shape) == 3 else None


def _is_rotated(value: ir.Value, states: ir.Value, half: int) -> bool:
    """`value` is the negated second half of `states`, then the first one."""
    node = made_by(value, "Concat")
    if node is None or node.attributes.get_int("axis") not in (3, -1) or len(node.inputs) != 2:
        return False
    negated = made_by(operand(node, 0), "Neg")
    if negated is None:
        return False
    second, first = _part(operand(negated, 0), states), _part(operand(node, 1), states)
    return second == (half, 2 * half) and first == (0, half)


def _part(value: ir.Value, whole: ir.Value) -> tuple[int, int] | None:
    """First and last place (exclusive) of what `value` cuts from the last axis of ``whole [B, H, S, D]``."""
    node = made_by(value, "Slice")
    size = static_dim(whole, 3)
    if node is None or operand(node, 0) is not whole or size is None or len(node.inputs) < 4:
        return None
    start, end, axes, steps = (constant_array(each) for each in [*node.inputs[1:], None][:4])
    if start is None or end is None or axes is None or axes.tolist() not in ([3], [-1]):
        return None
    if len(node.inputs) > 4 and (steps is None or steps.tolist() != [1]):
        return None
    first, last, _ = slice(int(start[0]), int(end[0])).indices(size)
    return first, last


def _halves_are_equal(value: ir.Value | None, size: int, depth: int = 16) -> bool:
    """Both halves of the last axis of `value` are the same, by how it is computed."""
    node = None if value is None else value.producer()
    if node is None or node.domain or not depth:
        return False
    if node.op_type == "Concat":
        rank = None if node.outputs[0].shape is None else len(node.outputs[0].shape)
        is_last = rank is not None and node.attributes.get_int("axis") in (-1, rank - 1)
        return is_last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
    if node.op_type not in _ELEMENTWISE:
        return False
    operands = node.inputs[:1] if node.op_type == "Unsqueeze" else node.inputs
    varying = [each for each in operands if each is not None and not _is_constant_along_last(each)]
    return bool(varying) and all(_last(each) == size and _halves_are_equal(each, size, depth - 1) for each in varying)


def _last(value: ir.Value) -> int | None:
    """Size of the last axis."""
    return None if value.shape is None or not len(value.shape) else static_dim(value, len(value.shape) - 1)


def _is_constant_along_last(value: ir.Value) -> bool:
    return value.shape is not None and (not len(value.shape) or _last(value) == 1)


def _table(edit: GraphEditor, values: ir.Value) -> ir.Value:
    """The first half of ``values [B, S, D]`` as ``[B * S, D / 2]``."""

    def make() -> ir.Value:
        half = (static_dim(values, 2) or 0) // 2
        first = edit.op("Slice", values, edit.int64s(0), edit.int64s(half), edit.int64s(2))
        return edit.op("Reshape", first, edit.int64s(-1, half))

    table: ir.Value = edit.once(("table", values), make)
    return table


def _row_numbers(edit: GraphEditor, match: _Match) -> ir.Value:
    """``[B, S]``: the row of the tables that belongs to a token."""

    def make() -> ir.Value:
        shape = edit.op("Shape", match.cosines, start=0, end=2)
        count = edit.op("ReduceProd", shape, keepdims=0)
        rows = edit.op("Reshape", edit.op("Range", edit.int64(0), count, edit.int64(1)), shape)
        if same_dim(match.states, 0, match.cosines, 0):
            return rows
        # The kernel wants a number for each token of each row, also where the rows share them.
        batch = edit.op("Shape", match.states, start=0, end=1)
        tokens = edit.op("Shape", match.cosines, start=1, end=2)
        return edit.op("Expand", rows, edit.op("Concat", batch, tokens, axis=0))

    numbers: ir.Value = edit.once(("rows", match.cosines), make)
    return numbers
