"""``Pad`` of booleans pads numbers: the compiler has no kernel for booleans, and leaves such a node on the CPU.

Masks in which the tokens of an image see each other are padded.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, nodes_of, operand


class BooleanPads(GraphPass):
    """Rewrites each ``Pad`` of booleans."""

    name = "BooleanPads"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether one was rewritten."""
        found = [node for node in nodes_of(model, "Pad") if operand(node, 0).dtype == ir.DataType.BOOL]
        for node in found:
            edit = GraphEditor(model, node)
            pads, value, *axes = [*node.inputs[1:], None][: max(2, len(node.inputs) - 1)]
            if value is not None:
                value = edit.cast(value, ir.DataType.FLOAT)
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            data = edit.cast(operand(node, 0), ir.DataType.FLOAT)
            padded = edit.op("Pad", data, pads, value, *axes, **attributes)
            edit.replace(node, edit.op("Cast", padded, to=ir.DataType.BOOL))
        return bool(found)
