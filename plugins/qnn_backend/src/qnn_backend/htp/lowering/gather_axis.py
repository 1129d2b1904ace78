"""A gather in the middle of a tensor is moved to axis 0.

In float16 the compiler gets a gather wrong, without an error, when its axis is neither the first nor the last, something larger
than 1 is in front of it, and data or indices are not constant (seen with 32-bit indices). Axis 0 of the transposed tensor is
right.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from qeff_framework.lowering import (
    GraphEditor,
    GraphPass,
    is_weight,
    nodes_of,
    operand,
    require_shape,
    static_shape,
)


class GatherMiddleAxis(GraphPass):
    """Rewrites each ``Gather`` of floats along such an axis."""

    name = "GatherMiddleAxis"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether a gather was rewritten."""
        found = [node for node in nodes_of(model, "Gather") if _is_hazard(node)]
        for node in found:
            _rewrite(GraphEditor(model, node), node)
        return bool(found)


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get_int("axis", 0)
    return axis if axis >= 0 else axis + len(require_shape(operand(node, 0)))


def _is_hazard(node: ir.Node) -> bool:
    data, indices = operand(node, 0), operand(node, 1)
    shape = static_shape(data)
    if shape is None or static_shape(indices) is None or data.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    axis = _axis(node)
    in_the_middle = 0 < axis < len(shape) - 1 and math.prod(shape[:axis]) > 1
    return in_the_middle and not (is_weight(indices) and not is_weight(data))


def _rewrite(edit: GraphEditor, node: ir.Node) -> None:
    data, indices, axis = operand(node, 0), operand(node, 1), _axis(node)
    rank, count = len(require_shape(data)), len(require_shape(indices))
    front = edit.op("Transpose", data, perm=[axis, *(index for index in range(rank) if index != axis)])
    gathered = edit.op("Gather", front, indices, axis=0)
    # The gathered axes go back behind the `axis` ones that were in front of them.
    back = [*range(count, count + axis), *range(count), *range(count + axis, count + rank - 1)]
    in_order = back == list(range(len(back)))
    edit.replace(node, gathered if in_order else edit.op("Transpose", gathered, perm=back))
