"""``RMSNorm`` becomes ONNX ``RMSNormalization``, which the compiler maps to a kernel of its own.

Composed of single ops in float16 it is wrong from hidden states of 256 on, whose squares leave the range, and with the weight
as the first operand of its last product the compiler gives up with a misleading message about memory.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import DialectPass, GraphEditor, RMSNormNode


class FusedRMSNorm(DialectPass[RMSNormNode]):
    """Lowers every ``RMSNorm`` in float32."""

    name = "FusedRMSNorm"
    version = "2"
    node_type = RMSNormNode

    def lower(self, node: RMSNormNode, edit: GraphEditor) -> ir.Value | None:
        """One kernel."""
        if not node.hidden.dtype == node.weight.dtype == ir.DataType.FLOAT:
            return None
        return edit.op("RMSNormalization", node.hidden, node.weight, axis=-1, epsilon=node.epsilon)
