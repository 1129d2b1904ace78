"""Removes what other passes have left without a reader: masks, weights, and the bodies of lowered ops."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from qeff_framework.lowering.passes import GraphPass


class RemoveUnused(GraphPass):
    """Removes nodes, initializers and functions that no output needs."""

    name = "RemoveUnused"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether something was removed."""
        nodes = RemoveUnusedNodesPass()(model).modified
        functions = RemoveUnusedFunctionsPass()(model).modified  # type: ignore[no-untyped-call]
        return nodes or functions
