"""Attention that stays a body reads its values as they are, and only where the result is not a number without what nobody sees.

The dialect's bodies replace the values of slots that no token sees by zeros before the product: a slot that was never written may
hold an infinity, and zero times infinity is NaN. That copies all values of a context for each token, which takes longer than the
product itself. Such slots are rare, and show in the result.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import onnx_ir.tape

from qeff_framework.lowering import DOMAIN, GraphPass

#: What the bodies call the values without those that nobody sees.
SEEN = "seen_value"


class LazyValues(GraphPass):
    """Moves the selection of values in each body of an attention into a branch that is taken when a result is NaN."""

    name = "LazyValues"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a body was changed."""
        changed = False
        used = {node.op_identifier() for node in model.graph.all_nodes()}
        for function in model.functions.values():
            if function.identifier() not in used:
                continue
            select = next((node for node in function if node.outputs[0].name == SEEN), None)
            if function.domain == DOMAIN and select is not None:
                _branch(function, select)
                changed = True
        return changed


def _branch(function: ir.Function, select: ir.Node) -> None:
    ((product, _),) = select.outputs[0].uses()
    weights, value = product.inputs[0], select.inputs[1]
    tape: Any = ir.tape.Tape()
    plain = tape.op("MatMul", [weights, value])
    is_nan = tape.op("Cast", [tape.op("IsNaN", [plain])], {"to": ir.DataType.INT64.value})
    has_nan = tape.op("Cast", [tape.op("ReduceMax", [is_nan], {"keepdims": 0})], {"to": ir.DataType.BOOL.value})
    moved = _only_for(function, select)
    result = ir.Value(name=product.outputs[0].name)
    function.insert_before(product, tape.nodes)
    product.outputs[0].replace_all_uses_with(result)
    inner = [*moved, select, product]
    function.remove(inner)
    product.outputs[0].name = "product_of_seen"
    same = ir.Node("", "Identity", [plain], outputs=[ir.Value(name="plain_product")])
    branches = {
        "then_branch": ir.Graph([], product.outputs, nodes=inner, name="without_unseen_values"),
        "else_branch": ir.Graph([], same.outputs, nodes=[same], name="as_they_are"),
    }
    choice = ir.Node("", "If", [has_nan], [ir.AttrGraph(*item) for item in branches.items()], outputs=[result])
    function.insert_after(tape.nodes[-1], choice)


def _only_for(function: ir.Function, select: ir.Node) -> list[ir.Node]:
    """The nodes whose results nothing but `select` needs, in order."""
    found: set[ir.Node] = {select}
    for node in reversed(function):
        users = {use.node for output in node.outputs for use in output.uses()}
        if node is not select and users and users <= found and not any(o.is_graph_output() for o in node.outputs):
            found.add(node)
    return [node for node in function if node in found and node is not select]
