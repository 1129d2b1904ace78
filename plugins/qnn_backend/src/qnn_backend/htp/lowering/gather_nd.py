"""``GatherND`` becomes a ``Gather`` of rows.

The compiler gets it wrong, without an error, when there are more index rows than rows of constant data (the experts that the
tokens of a prompt choose, for instance), and refuses batch dimensions. A gather along axis 0 of the flattened data is right.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qnn_backend.htp.lowering.graph import INT32, Writer, known_sizes, number, operand, sizes, standard_nodes


class GatherNDRows:
    """Rewrites each ``GatherND`` of static shape whose indices are not negative; torch exports no others."""

    name = "GatherNDRows"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a gather was rewritten."""
        found = [node for node in standard_nodes(model, "GatherND") if _has_sizes(node)]
        for node in found:
            write = Writer(model, node)
            write.replace(node, _rows(write, node))
        return bool(found)


def _has_sizes(node: ir.Node) -> bool:
    return sizes(operand(node, 0)) is not None and sizes(operand(node, 1)) is not None


def _rows(write: Writer, node: ir.Node) -> ir.Value:
    data, indices, batch = operand(node, 0), operand(node, 1), int(number(node, "batch_dims"))
    shape, (*places, depth) = known_sizes(data), known_sizes(indices)
    named, rest = shape[: batch + depth], shape[batch + depth :]
    linear = _linear(write, indices, places, named, batch)
    table = write.reshape(data, (math.prod(named), *rest))
    return write.op("Gather", table, linear, axis=0, shape=(*places, *rest), dtype=data.dtype)


def _linear(write: Writer, indices: ir.Value, places: list[int], named: tuple[int, ...], batch: int) -> ir.Value:
    """The number of the row that each index names, ``places``-shaped."""
    depth = len(named) - batch
    if depth == 1:
        total = write.reshape(indices, places)
        if not batch:
            return total
    strides = [math.prod(named[position + 1 :]) for position in range(len(named))]
    narrow = write.op("Cast", indices, to=INT32, shape=(*places, depth), dtype=ir.DataType.INT32)
    if depth > 1:
        factors = write.array(np.array(strides[batch:], np.int32))
        products = write.op("Mul", narrow, factors, shape=(*places, depth), dtype=ir.DataType.INT32)
        total = write.op("ReduceSum", products, write.ints(-1), keepdims=0, shape=places, dtype=ir.DataType.INT32)
    else:
        total = write.reshape(narrow, places)
    if batch:
        offsets = np.zeros([*named[:batch], *[1] * (len(places) - batch)], np.int32)
        for axis in range(batch):
            along = [-1 if axis == other else 1 for other in range(len(places))]
            offsets = offsets + np.arange(named[axis], dtype=np.int32).reshape(along) * strides[axis]
        total = write.op("Add", total, write.array(offsets.astype(np.int32)), shape=places, dtype=ir.DataType.INT32)
    return total
