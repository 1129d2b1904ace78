"""``Pad`` of booleans pads floating-point numbers: the compiler refuses booleans there.

Gemma 3 moves a mask of image tokens by one place that way, to find where an image begins.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, nodes_of, operand


class BooleanPads(GraphPass):
    """Rewrites each ``Pad`` of booleans."""

    name = "BooleanPads"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Returns whether a node was rewritten."""
        found = [node for node in nodes_of(model, "Pad") if operand(node, 0).dtype == ir.DataType.BOOL]
        for node in found:
            edit = GraphEditor(model, node)
            numbers = edit.cast(operand(node, 0), ir.DataType.FLOAT)
            fill = node.inputs[2] if len(node.inputs) > 2 else None
            constant = None if fill is None else edit.cast(fill, ir.DataType.FLOAT)
            mode = node.attributes.get_string("mode", "constant")
            padded = edit.op("Pad", numbers, node.inputs[1], constant, *node.inputs[3:], mode=mode)
            edit.replace(node, edit.op("Greater", padded, edit.scalar_like(0, padded)))
        return bool(found)
