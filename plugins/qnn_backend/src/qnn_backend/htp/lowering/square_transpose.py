"""A product behind a transposition of a tensor whose first sizes are equal is computed on rows.

``[n, n, n, D]``, transposed to exchange tokens and heads, reshaped to ``[n, n, n*D]`` and multiplied by a weight, comes out
wrong, without an error: the output of attention, when batch size, heads and tokens are the same number. With the tokens of all
batches as rows, ``[n*n, n*D]``, it is right.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from qeff_framework.lowering import (
    GraphEditor,
    GraphPass,
    is_weight,
    made_by,
    nodes_of,
    operand,
    require_shape,
    static_shape,
)


class SquareTransposeRows(GraphPass):
    """Rewrites each ``MatMul`` of such a tensor with a matrix of weights."""

    name = "SquareTransposeRows"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a product was rewritten."""
        found = [node for node in nodes_of(model, "MatMul") if _is_hazard(node)]
        for node in found:
            left, right = operand(node, 0), operand(node, 1)
            shape, columns = require_shape(left), require_shape(right)[1]
            edit = GraphEditor(model, node)
            product = edit.op("MatMul", edit.reshape(left, (math.prod(shape[:-1]), shape[-1])), right)
            edit.replace(node, edit.reshape(product, (*shape[:-1], columns)))
        return bool(found)


def _is_hazard(node: ir.Node) -> bool:
    left, right = operand(node, 0), operand(node, 1)
    if not is_weight(right) or len(static_shape(right) or ()) != 2 or len(static_shape(left) or ()) < 3:
        return False
    reshape = made_by(left, "Reshape")
    transpose = None if reshape is None else made_by(operand(reshape, 0), "Transpose")
    shape = () if transpose is None else static_shape(operand(transpose, 0)) or ()
    return len(shape) > 3 and len(set(shape[:3])) == 1 and shape[0] > 1
