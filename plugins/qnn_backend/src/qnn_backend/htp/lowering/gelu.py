"""Composed ``Gelu`` becomes the op: the compiler knows no ``Erf``, and finds no pattern in a quantised graph."""

from __future__ import annotations

import math

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qeff_framework.lowering import GraphEditor, GraphPass, constant_array, made_by, nodes_of, operand


class FusedGelu(GraphPass):
    """Rewrites each such ``Erf``."""

    name = "FusedGelu"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether one was rewritten."""
        changed = False
        for erf in nodes_of(model, "Erf"):
            found = _match(erf)
            if found is not None:
                source, last = found
                edit = GraphEditor(model, last)
                edit.replace(last, edit.op("Gelu", source))
                changed = True
        if changed:
            common_passes.RemoveUnusedNodesPass()(model)
        return changed


def _match(erf: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    division = made_by(operand(erf, 0), "Div")
    if division is None or not _is(division.inputs[1], math.sqrt(2.0)):
        return None
    source = operand(division, 0)
    shifted = _reader(erf, "Add", 1.0)
    halved = None if shifted is None else _reader(shifted, "Mul", 0.5)
    if halved is None or len(halved.outputs[0].uses()) != 1:
        return None
    last = next(iter(halved.outputs[0].uses())).node
    return (source, last) if last.op_type == "Mul" and source in last.inputs else None


def _reader(node: ir.Node, op_type: str, number: float) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != op_type:
        return None
    return uses[0].node if any(_is(value, number) for value in uses[0].node.inputs) else None


def _is(value: ir.Value | None, number: float) -> bool:
    content = constant_array(value)
    return content is not None and content.size == 1 and math.isclose(float(content.item()), number, rel_tol=1e-4)
