"""Removes what other passes have left without a reader: masks, weights, and the bodies of lowered ops."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from qeff_framework.lowering.passes import GraphPass


class RemoveUnused(GraphPass):
    """Removes nodes, initializers and functions that no output needs."""

    name = "RemoveUnused"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether something was removed."""
        forget_lost_readers(model)
        nodes = RemoveUnusedNodesPass()(model).modified
        functions = RemoveUnusedFunctionsPass()(model).modified  # type: ignore[no-untyped-call]
        return nodes or functions


def forget_lost_readers(model: ir.Model) -> None:
    """Takes values away from nodes that belong to the model no more: those of a branch that was not taken, or was removed.

    onnx_ir counts them as readers, so that what they have read would stay.
    """
    alive = set(model.graph.all_nodes())
    values = [value for node in alive for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *values):
        for node, number in list(value.uses()):
            if node not in alive:
                node.replace_input_with(number, None)
