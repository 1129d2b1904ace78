"""``RMSNorm`` becomes ONNX Runtime's SimplifiedLayerNormalization, one kernel instead of the body's ten nodes.

ONNX Runtime keeps the op in the standard domain. It computes in float32 whatever the input is (``stash_type``), as the dialect
asks.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import DialectPass, GraphEditor, RMSNormNode


class SimplifiedRMSNorm(DialectPass[RMSNormNode]):
    """Lowers every ``RMSNorm`` whose weight has the input's dtype."""

    name = "SimplifiedRMSNorm"
    version = "3"
    node_type = RMSNormNode

    def lower(self, node: RMSNormNode, edit: GraphEditor) -> ir.Value | None:
        """One kernel."""
        if node.hidden.dtype is None or node.hidden.dtype != node.weight.dtype:
            return None
        return edit.op(
            "SimplifiedLayerNormalization",
            node.hidden,
            node.weight,
            axis=-1,
            epsilon=node.epsilon,
            stash_type=ir.DataType.FLOAT.value,
        )
