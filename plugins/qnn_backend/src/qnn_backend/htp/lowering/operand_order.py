"""A product of a weight and a tensor gets the weight as its second operand.

With the weight first, behind a composed norm, the compiler fails to finalize the graph with QNN_COMMON_ERROR_MEM_ALLOC, code
1002.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphPass, is_weight, nodes_of, operand


class ScaleOperandOrder(GraphPass):
    """Swaps the operands of each such ``Mul``."""

    name = "ScaleOperandOrder"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether operands were swapped."""
        found = [node for node in nodes_of(model, "Mul") if is_weight(node.inputs[0]) and not is_weight(node.inputs[1])]
        for node in found:
            weight, other = operand(node, 0), operand(node, 1)
            node.replace_input_with(0, other)
            node.replace_input_with(1, weight)
        return bool(found)
