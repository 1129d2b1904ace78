"""Removes what the other passes have left without a reader: masks, and the bodies of lowered ops."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass


class RemoveUnused:
    """Removes unused nodes and functions."""

    name = "RemoveUnused"
    version = "1"

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether something was removed."""
        nodes = RemoveUnusedNodesPass()(subject).modified
        functions = RemoveUnusedFunctionsPass()(subject).modified  # type: ignore[no-untyped-call]
        return nodes or functions
