"""What is left of the dialect is replaced by its bodies in standard ops."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qnn_backend.htp.lowering.graph import DIALECT


class InlineDialect:
    """Inlines functions and removes them together with their domain."""

    name = "InlineDialect"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a function was inlined or removed."""
        if not model.functions and DIALECT not in model.opset_imports:
            return False
        if any(node.domain == DIALECT for node in model.graph.all_nodes()):
            common_passes.InlinePass()(model)
        model.functions.clear()
        model.opset_imports.pop(DIALECT, None)
        common_passes.RemoveUnusedNodesPass()(model)
        return True
