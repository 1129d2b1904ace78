"""``GatherND`` becomes a ``Gather`` of rows.

The compiler gets it wrong, without an error, when there are more index rows than rows of constant data (the experts that the
tokens of a prompt choose, for instance), and refuses batch dimensions. A gather along axis 0 of the flattened data is right.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, nodes_of, operand, require_shape, static_shape


class GatherNDRows(GraphPass):
    """Rewrites each ``GatherND`` of static shape whose indices are not negative; torch exports no others."""

    name = "GatherNDRows"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether a gather was rewritten."""
        found = [node for node in nodes_of(model, "GatherND") if _has_sizes(node)]
        for node in found:
            edit = GraphEditor(model, node)
            edit.replace(node, _rows(edit, node))
        return bool(found)


def _has_sizes(node: ir.Node) -> bool:
    return static_shape(operand(node, 0)) is not None and static_shape(operand(node, 1)) is not None


def _rows(edit: GraphEditor, node: ir.Node) -> ir.Value:
    data, indices, batch = operand(node, 0), operand(node, 1), node.attributes.get_int("batch_dims", 0)
    shape, (*places, depth) = require_shape(data), require_shape(indices)
    named, rest = shape[: batch + depth], shape[batch + depth :]
    linear = _linear(edit, indices, places, named, batch)
    return edit.op("Gather", edit.reshape(data, (math.prod(named), *rest)), linear, axis=0)


def _linear(edit: GraphEditor, indices: ir.Value, places: list[int], named: tuple[int, ...], batch: int) -> ir.Value:
    """The number of the row that each index names, ``places``-shaped."""
    depth = len(named) - batch
    if depth == 1 and not batch:
        return edit.reshape(indices, places)
    strides = [math.prod(named[position + 1 :]) for position in range(len(named))]
    total = edit.cast(indices, ir.DataType.INT32)
    if depth > 1:
        products = edit.op("Mul", total, edit.array(np.array(strides[batch:], np.int32)))
        total = edit.op("ReduceSum", products, edit.int64s(-1), keepdims=0)
    else:
        total = edit.reshape(total, places)
    if batch:
        offsets = np.zeros([*named[:batch], *[1] * (len(places) - batch)], np.int32)
        for axis in range(batch):
            along = [-1 if axis == other else 1 for other in range(len(places))]
            offsets = offsets + np.arange(named[axis], dtype=np.int32).reshape(along) * strides[axis]
        total = edit.op("Add", total, edit.array(offsets.astype(np.int32)))
    return total
