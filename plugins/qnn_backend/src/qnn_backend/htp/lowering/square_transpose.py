"""A product behind a transposition of a tensor whose first sizes are equal is computed on rows.

``[n, n, n, D]``, transposed to exchange tokens and heads, reshaped to ``[n, n, n*D]`` and multiplied by a weight, comes out
wrong, without an error: the output of attention, when batch size, heads and tokens are the same number. With the tokens of all
batches as rows, ``[n*n, n*D]``, it is right.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from qnn_backend.htp.lowering.graph import Writer, is_weight, known_sizes, operand, sizes, standard_nodes


class SquareTransposeRows:
    """Rewrites each ``MatMul`` of such a tensor with a matrix of weights."""

    name = "SquareTransposeRows"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a product was rewritten."""
        found = [node for node in standard_nodes(model, "MatMul") if _is_hazard(node)]
        for node in found:
            left, right = operand(node, 0), operand(node, 1)
            shape, columns = known_sizes(left), known_sizes(right)[1]
            rows = math.prod(shape[:-1])
            write = Writer(model, node)
            product = write.op("MatMul", write.reshape(left, (rows, shape[-1])), right, shape=(rows, columns))
            write.replace(node, write.reshape(product, (*shape[:-1], columns)))
        return bool(found)


def _is_hazard(node: ir.Node) -> bool:
    left, right = operand(node, 0), operand(node, 1)
    if not is_weight(right) or len(sizes(right) or ()) != 2 or len(sizes(left) or ()) < 3:
        return False
    reshape = left.producer()
    if reshape is None or reshape.op_type != "Reshape":
        return False
    transpose = operand(reshape, 0).producer()
    if transpose is None or transpose.op_type != "Transpose":
        return False
    shape = sizes(operand(transpose, 0)) or ()
    return len(shape) > 3 and len(set(shape[:3])) == 1 and shape[0] > 1
