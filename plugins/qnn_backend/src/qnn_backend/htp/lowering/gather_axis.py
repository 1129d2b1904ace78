"""A gather in the middle of a tensor is moved to axis 0.

In float16 the compiler gets a gather wrong, without an error, when its axis is neither the first nor the last, something larger
than 1 is in front of it, and data or indices are not constant (seen with 32-bit indices). Axis 0 of the transposed tensor is
right.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from qnn_backend.htp.lowering.graph import Writer, is_weight, known_sizes, number, operand, sizes, standard_nodes


class GatherMiddleAxis:
    """Rewrites each ``Gather`` of floats along such an axis."""

    name = "GatherMiddleAxis"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a gather was rewritten."""
        found = [node for node in standard_nodes(model, "Gather") if _is_hazard(node)]
        for node in found:
            _rewrite(Writer(model, node), node)
        return bool(found)


def _axis(node: ir.Node) -> int:
    axis = int(number(node, "axis"))
    return axis if axis >= 0 else axis + len(known_sizes(operand(node, 0)))


def _is_hazard(node: ir.Node) -> bool:
    data, indices = operand(node, 0), operand(node, 1)
    shape = sizes(data)
    if shape is None or sizes(indices) is None or data.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    axis = _axis(node)
    in_the_middle = 0 < axis < len(shape) - 1 and math.prod(shape[:axis]) > 1
    return in_the_middle and not (is_weight(indices) and not is_weight(data))


def _rewrite(write: Writer, node: ir.Node) -> None:
    data, indices, axis = operand(node, 0), operand(node, 1), _axis(node)
    shape, places = known_sizes(data), known_sizes(indices)
    order = [axis, *(index for index in range(len(shape)) if index != axis)]
    moved = tuple(shape[index] for index in order)
    front = write.op("Transpose", data, perm=order, shape=moved, dtype=data.dtype)
    gathered = write.op("Gather", front, indices, axis=0, shape=(*places, *moved[1:]), dtype=data.dtype)
    # The gathered axes go back behind the `axis` ones that were in front of them.
    count = len(places)
    back = [*range(count, count + axis), *range(count), *range(count + axis, count + len(shape) - 1)]
    if back == list(range(len(back))):
        write.replace(node, gathered)
        return
    result = tuple([*places, *moved[1:]][index] for index in back)
    write.replace(node, write.op("Transpose", gathered, perm=back, shape=result, dtype=data.dtype))
