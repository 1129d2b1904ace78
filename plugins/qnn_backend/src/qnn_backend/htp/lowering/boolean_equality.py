"""``Equal`` of booleans is ``Not(Xor)``: the compiler has no ``Equal`` for them.

Divisions of whole numbers that round down compare signs that way; models of sound count frames with them.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, nodes_of, operand


class BooleanEquality(GraphPass):
    """Rewrites each ``Equal`` of booleans."""

    name = "BooleanEquality"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether one was rewritten."""
        found = [node for node in nodes_of(model, "Equal") if operand(node, 0).dtype == ir.DataType.BOOL]
        for node in found:
            edit = GraphEditor(model, node)
            edit.replace(node, edit.op("Not", edit.op("Xor", operand(node, 0), operand(node, 1))))
        return bool(found)
