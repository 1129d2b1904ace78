"""``Neg`` of integers is a subtraction from zero: the compiler has ``Neg`` for floating-point numbers alone.

T5 negates relative positions, which are integers, to sort them into buckets.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, nodes_of, operand


class IntegerNegation(GraphPass):
    """Rewrites each ``Neg`` of integers."""

    name = "IntegerNegation"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Returns whether a node was rewritten."""
        found = [node for node in nodes_of(model, "Neg") if (operand(node, 0).dtype or ir.DataType.FLOAT).is_integer()]
        for node in found:
            edit = GraphEditor(model, node)
            value = operand(node, 0)
            edit.replace(node, edit.op("Sub", edit.scalar_like(0, value), value))
        return bool(found)
