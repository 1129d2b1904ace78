"""RMSNormalization and Gelu, which the compiler has kernels for, are ops of later opsets than the portable graph's."""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphPass

OPSET = 23


class LaterOpset(GraphPass):
    """Declares opset 23: the ops of the portable graph mean the same there. Runs when the bodies of the dialect are inlined."""

    name = "LaterOpset"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether the opset was another one."""
        before, model.opset_imports[""] = model.opset_imports[""], OPSET
        return before != OPSET
