"""``RMSNormalization`` is computed on rows, a tensor ``[N, D]``.

The compiler's kernel gets tensors with more than one axis larger than 1 in front of the last one wrong, without an error:
``[B, T, D]`` in every other row of the batch, ``[1, T, H, D]``, a norm of queries and keys by heads, everywhere.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, nodes_of, operand, require_shape, static_shape

_DEFAULT_EPSILON = 1e-5


class NormRows(GraphPass):
    """Rewrites each ``RMSNormalization`` of the last axis of such a tensor."""

    name = "NormRows"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a norm was rewritten."""
        found = [node for node in nodes_of(model, "RMSNormalization") if _is_hazard(node)]
        for node in found:
            edit, hidden, weight = GraphEditor(model, node), operand(node, 0), operand(node, 1)
            shape = require_shape(hidden)
            rows = edit.reshape(hidden, (math.prod(shape[:-1]), shape[-1]))
            epsilon = node.attributes.get_float("epsilon", _DEFAULT_EPSILON)
            normed = edit.op("RMSNormalization", rows, weight, axis=-1, epsilon=epsilon)
            edit.replace(node, edit.reshape(normed, shape))
        return bool(found)


def _is_hazard(node: ir.Node) -> bool:
    shape = static_shape(operand(node, 0))
    if shape is None or node.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
        return False
    return sum(size > 1 for size in shape[:-1]) > 1
