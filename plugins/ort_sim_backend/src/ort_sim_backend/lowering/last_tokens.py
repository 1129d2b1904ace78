"""What is computed for each token, and read for the one of a row whose logits are asked for, is computed for that one alone.

That is the last layer behind its attention: the output product and the MLP. Keys and values of all tokens are still written.

A calibration wants what all tokens give, so this runs behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import onnx_ir as ir

from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import GraphEditor, GraphPass, constant_array, is_weight, made_by, operand, same_dim

#: In the `meta` of a node whose result for a token, along axis 1, depends on what the first operand has for it, and on constants.
ROWWISE: Final = "ort_sim.rowwise"
_TOKENS = 1
#: Ops whose result for a token depends on what the operands have for this token, and on constants.
_ELEMENTWISE = {
    "": (
        *("Abs", "Add", "Cast", "Clip", "Div", "Erf", "Identity", "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid"),
        *("Softplus", "Sqrt", "Sub", "Tanh", "Where"),
    ),
    CONTRIB: ("BiasGelu", "FastGelu", "Gelu", "QuickGelu"),
}
#: The same, along the last axis.
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")
_PRODUCTS = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat")


class LastTokens(GraphPass):
    """Lowers each choice of one token of each row from ``[B, S, K]``."""

    name = "LastTokens"
    version = "3"

    def run(self, model: ir.Model) -> bool:
        """Says whether a product is left to fewer tokens."""
        choices = [node for node in model.graph if not node.domain and node.op_type == "GatherElements"]
        found = [_lowered(model, node) for node in choices]
        return any(found)


def _lowered(model: ir.Model, choice: ir.Node) -> bool:
    index, nodes = _index(choice), _nodes(model, choice)
    if index is None or not nodes:
        return False
    edit = GraphEditor(model, choice)
    # The index may be computed behind the layer.
    model.graph.remove(nodes)
    given = dict.fromkeys(value for node in nodes for value in _by_token(node, operand(choice, 0)))
    made = {value for node in nodes for value in node.outputs}
    chosen = {value: _chosen(edit, value, index) for value in given if value not in made}
    model.graph.insert_before(choice, nodes)
    for node in nodes:
        for place, value in enumerate(node.inputs):
            if value in chosen:
                node.replace_input_with(place, chosen[value])
        for value in node.outputs:
            value.shape = _of_one_token(value)
    edit.replace(choice, operand(choice, 0))
    return True


def _index(choice: ir.Node) -> ir.Value | None:
    """``[B, 1, 1]``: the token of each row."""
    expand = made_by(operand(choice, 1), "Expand")
    if expand is None or choice.attributes.get_int("axis", 0) != _TOKENS:
        return None
    index = operand(expand, 0)
    is_one = index.dtype == ir.DataType.INT64 and index.shape is not None and len(index.shape) == 3
    return index if is_one and index.shape is not None and tuple(index.shape[1:]) == (1, 1) else None


def _nodes(model: ir.Model, choice: ir.Node) -> Sequence[ir.Node]:
    """In graph order, the products that `choice` alone reads the results of, and what stands between them and it."""
    tokens, members = operand(choice, 0), {choice}
    if tokens.shape is None or len(tokens.shape) != 3:
        return []
    for node in reversed(model.graph):
        users = {use.node for value in node.outputs for use in value.uses()}
        is_private = users and users <= members and not any(value.is_graph_output() for value in node.outputs)
        if is_private and node is not choice and any(_by_token(node, tokens)):
            members.add(node)
    found: dict[ir.Node, None] = {}
    for node in model.graph:
        if node in members and node is not choice:
            has_product = any(value is not None and value.producer() in found for value in node.inputs)
            if has_product or node.op_type in _PRODUCTS:
                found[node] = None
    return [*found]


def _by_token(node: ir.Node, tokens: ir.Value) -> Iterator[ir.Value]:
    """The operands that have something for each of `tokens`; none where the results are not by token."""
    if ROWWISE in node.meta:
        yield operand(node, 0)
        return
    if not all(_is_by_token(value, tokens) for value in node.outputs):
        return
    values = [value for value in node.inputs if value is not None]
    if node.op_type in _ELEMENTWISE.get(node.domain, ()):
        varying = [value for value in values if not _is_for_all(value)]
    elif node.op_type in _PRODUCTS:
        varying = values[:1] if all(_is_matrix(value) for value in values[1:]) else []
    elif node.op_type in _NORMS and node.attributes.get_int("axis", -1) in (-1, 2):
        varying = values[:1] if all(_is_for_all(value) for value in values[1:]) else []
    elif node.op_type == "ReduceMax" and _constant_ints(values[1:]) in ([-1], [2]):
        varying = values[:1]
    else:
        return
    if all(_is_by_token(value, tokens) for value in varying):
        yield from varying


def _constant_ints(values: Sequence[ir.Value]) -> list[int] | None:
    array = constant_array(values[0]) if values else None
    return None if array is None else [int(number) for number in array.reshape(-1)]


def _is_by_token(value: ir.Value, tokens: ir.Value) -> bool:
    has_axes = value.shape is not None and len(value.shape) == 3
    return has_axes and same_dim(value, 0, tokens, 0) and same_dim(value, _TOKENS, tokens, _TOKENS)


def _is_for_all(value: ir.Value) -> bool:
    """It has no axis of tokens."""
    return value.shape is not None and len(value.shape) <= 1


def _is_matrix(value: ir.Value) -> bool:
    turned = made_by(value, "Transpose")
    return is_weight(value if turned is None else operand(turned, 0))


def _chosen(edit: GraphEditor, value: ir.Value, index: ir.Value) -> ir.Value:
    result = edit.op("GatherND", value, index, batch_dims=1)
    result.type, result.shape = value.type, _of_one_token(value)
    return result


def _of_one_token(value: ir.Value) -> ir.Shape:
    sizes = value.shape or ()
    return ir.Shape([1 if axis == _TOKENS else size for axis, size in enumerate(sizes)])
