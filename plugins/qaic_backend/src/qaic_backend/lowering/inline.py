"""Dialect ops that are still there are replaced by their bodies: the compiler knows no functions of other domains."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qaic_backend.lowering.graph import DIALECT


class InlineDialect:
    """Inlines every function of the dialect and removes the unused ones together with the domain."""

    name = "InlineDialect"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a function of the dialect was inlined or removed."""
        known = [identifier for identifier in model.functions if identifier[0] == DIALECT]
        if not known and DIALECT not in model.opset_imports:
            return False
        if any(node.domain == DIALECT for node in model.graph.all_nodes()):
            common_passes.InlinePass(criteria=lambda function: function.domain == DIALECT)(model)
        for identifier in known:
            model.functions.pop(identifier, None)
        model.opset_imports.pop(DIALECT, None)
        common_passes.RemoveUnusedNodesPass()(model)
        return True
