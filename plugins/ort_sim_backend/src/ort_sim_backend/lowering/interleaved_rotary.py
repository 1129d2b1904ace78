"""The rotation of pairs that stand side by side, as in transformers of pictures, becomes one RotaryEmbedding.

Found by what it computes: ``x * cos + turned(x) * sin``, where ``turned`` makes ``(-b, a)`` of each pair ``(a, b)`` of the last
axis, and both numbers of a pair have the same sine and cosine. Cut into pairs the numbers are copied one by one, seven times.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ort_sim_backend.lowering.kernels import CONTRIB
from ort_sim_backend.lowering.rotations import readings
from qeff_framework.lowering import GraphEditor, GraphPass, constant_array, made_by, nodes_of, operand, static_shape

#: Ops whose result has equal pairs along the last axis when their operands have.
_ELEMENTWISE = ("Add", "Cast", "Cos", "Identity", "Mul", "Sin")
_RANK = 4


class InterleavedRotary(GraphPass):
    """Lowers each such rotation of float32 of fixed sizes, ``[B, S, H, D]`` or ``[B, H, S, D]``."""

    name = "InterleavedRotary"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a rotation was lowered."""
        shared: dict[Hashable, Any] = {}
        found = [(node, match) for node in nodes_of(model, "Add") if (match := _match(node)) is not None]
        for node, match in found:
            edit = GraphEditor(model, node, shared)
            edit.replace(node, _rotated(edit, match))
        return bool(found)


@dataclass(frozen=True, kw_only=True)
class _Match:
    states: ir.Value
    #: Of both the shape is that of `states` with ones for the heads, and perhaps for the rows.
    cosines: ir.Value
    sines: ir.Value
    #: The axis of the tokens: 1 or 2.
    tokens: int


def _match(node: ir.Node) -> _Match | None:
    for one in readings(node):
        tokens = _token_axis(one.states, one.cosines)
        if tokens is None or static_shape(one.sines) != static_shape(one.cosines):
            continue
        if _is_turned(one.turned, one.states) and all(_has_pairs(each) for each in (one.cosines, one.sines)):
            return _Match(states=one.states, cosines=one.cosines, sines=one.sines, tokens=tokens)
    return None


def _token_axis(states: ir.Value, table: ir.Value) -> int | None:
    """The axis of `states` that `table` has beside the last one; `None` where it is none for all heads."""
    shape, sizes = static_shape(states), static_shape(table)
    if shape is None or sizes is None or len(shape) != _RANK or len(sizes) != _RANK or sizes[3] != shape[3]:
        return None
    if shape[3] % 2 or sizes[0] not in (1, shape[0]):
        return None
    return next((axis for axis in (1, 2) if sizes[axis] == shape[axis] and sizes[3 - axis] == 1), None)


def _is_turned(value: ir.Value, states: ir.Value) -> bool:
    joined = made_by(value, "Reshape")
    pairs = None if joined is None else made_by(operand(joined, 0), "Concat")
    if pairs is None or len(pairs.inputs) != 2 or static_shape(value) != static_shape(states):
        return False
    last = _RANK
    if pairs.attributes.get_int("axis") not in (-1, last):
        return False
    negative, positive = (_column(operand(pairs, number)) for number in (0, 1))
    negated = None if negative is None else made_by(negative, "Neg")
    if negated is None or positive is None:
        return False
    return _number_in_pair(operand(negated, 0), states) == 1 and _number_in_pair(positive, states) == 0


def _column(value: ir.Value) -> ir.Value | None:
    """What `value` is with one more axis at the end."""
    node = made_by(value, "Unsqueeze")
    axes = None if node is None else constant_array(operand(node, 1))
    return operand(node, 0) if node is not None and axes is not None and axes.tolist() in ([-1], [_RANK]) else None


def _number_in_pair(value: ir.Value, states: ir.Value) -> int | None:
    """Which number of each pair of `states` the ``[..., D / 2]`` of `value` are."""
    squeezed = made_by(value, "Squeeze")
    if squeezed is None or len(squeezed.inputs) < 2 or not _is_last(squeezed.inputs[1]):
        return None
    cut = made_by(operand(squeezed, 0), "Slice")
    if cut is None or len(cut.inputs) < 4 or not _is_last(cut.inputs[3]):
        return None
    start, end = constant_array(cut.inputs[1]), constant_array(cut.inputs[2])
    step = constant_array(cut.inputs[4]) if len(cut.inputs) > 4 else np.ones(1)
    split = made_by(operand(cut, 0), "Reshape")
    shape, sizes = static_shape(states), static_shape(operand(cut, 0))
    if split is None or operand(split, 0) is not states or shape is None or sizes != (*shape[:3], shape[3] // 2, 2):
        return None
    if start is None or end is None or step is None or step.tolist() != [1]:
        return None
    first, last, _ = slice(int(start[0]), int(end[0])).indices(2)
    return first if last == first + 1 else None


def _is_last(axes: ir.Value | None) -> bool:
    found = constant_array(axes)
    return found is not None and found.tolist() in ([-1], [_RANK])


def _has_pairs(value: ir.Value | None, depth: int = 16) -> bool:
    """The numbers 2 i and 2 i + 1 of the last axis of `value` are the same, by how it is computed."""
    shape = None if value is None else static_shape(value)
    if value is None or not shape or shape[-1] % 2 or not depth:
        return False
    constant = constant_array(value)
    if constant is not None:
        return bool((constant[..., 0::2] == constant[..., 1::2]).all())
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "Reshape":
        return _is_repeated(operand(node, 0), shape)
    if node.op_type == "Concat":
        is_last = node.attributes.get_int("axis") in (-1, len(shape) - 1)
        return is_last and all(_has_pairs(each, depth - 1) for each in node.inputs)
    if node.op_type == "Unsqueeze":
        source = static_shape(operand(node, 0))
        return bool(source) and source is not None and source[-1] == shape[-1] and _has_pairs(node.inputs[0], depth - 1)
    if node.op_type not in _ELEMENTWISE:
        return False
    varying = [each for each in node.inputs if each is not None and not _is_one_along_last(each)]
    return bool(varying) and all(_has_pairs(each, depth - 1) for each in varying)


def _is_repeated(value: ir.Value, result: tuple[int, ...]) -> bool:
    """``[..., n, 2]`` that repeats ``[..., n, 1]``, and becomes ``[..., 2 n]``."""
    node, shape = made_by(value, "Expand"), static_shape(value)
    source = None if node is None else static_shape(operand(node, 0))
    if source is None or shape is None or source != (*shape[:-1], 1) or shape[-1] != 2:
        return False
    return (*shape[:-2], 2 * shape[-2]) == result


def _is_one_along_last(value: ir.Value) -> bool:
    shape = static_shape(value)
    return shape is not None and (not shape or shape[-1] == 1)


def _rotated(edit: GraphEditor, match: _Match) -> ir.Value:
    rows, *_, size = shape = static_shape(match.states) or ()
    tables = [_table(edit, value, size) for value in (match.cosines, match.sines)]
    count = shape[match.tokens]
    # A row of the tables for each token, of each row of the batch where these differ.
    numbers = np.arange((static_shape(match.cosines) or ())[0] * count, dtype=np.int64).reshape(-1, count)
    number_of_token = edit.array(np.ascontiguousarray(np.broadcast_to(numbers, (rows, count))))
    states = match.states
    if match.tokens == 1:
        # Three axes, with heads side by side, stand for this order; four for the other one.
        states = edit.reshape(states, (rows, count, shape[2] * size))
    turned = edit.op("RotaryEmbedding", states, number_of_token, *tables, domain=CONTRIB, interleaved=1)
    return edit.reshape(turned, shape) if match.tokens == 1 else turned


def _table(edit: GraphEditor, values: ir.Value, size: int) -> ir.Value:
    """A number of each pair of ``values``: ``[rows * tokens, D / 2]``."""

    def make() -> ir.Value:
        flat = edit.op("Reshape", values, edit.int64s(-1, size))
        return edit.op("Slice", flat, edit.int64s(0), edit.int64s(size), edit.int64s(1), edit.int64s(2))

    table: ir.Value = edit.once(("interleaved table", values), make)
    return table
