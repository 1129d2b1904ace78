"""A broadcast sum in front of a layer norm becomes a difference.

The compiler joins ``Add`` with the ``LayerNormalization`` behind it, also through a reshape, and the joined kernel forgets to
broadcast: with a table of positions ``[1, T, D]`` the norm is wrong, without an error, from row 1 of the batch on.
``x - (-p)`` is the same number and is not joined.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering import (
    GraphEditor,
    GraphPass,
    add_initializer,
    computed_tensor,
    is_weight,
    nodes_of,
    operand,
    require_shape,
    static_shape,
    weight_of,
)

_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


class BroadcastSums(GraphPass):
    """Rewrites each ``Add`` that broadcasts more than one vector and that a layer norm reads."""

    name = "BroadcastSums"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a sum was rewritten."""
        found = [node for node in nodes_of(model, "Add") if _broadcasts(node) and _is_normed(node.outputs[0])]
        for node in found:
            edit = GraphEditor(model, node)
            less, more = sorted((operand(node, 0), operand(node, 1)), key=lambda value: math.prod(require_shape(value)))
            edit.replace(node, edit.op("Sub", more, _negated(edit, model, less)))
        return bool(found)


def _broadcasts(node: ir.Node) -> bool:
    """A bias, a vector of the last axis, is not meant: the compiler gets it right, and joins it with the product in front."""
    shapes = [static_shape(operand(node, index)) for index in range(2)]
    result = static_shape(node.outputs[0])
    if result is None or any(shape is None for shape in shapes):
        return False
    sizes = [shape for shape in shapes if shape is not None and math.prod(shape) != math.prod(result)]
    return any(math.prod(shape[:-1]) > 1 for shape in sizes)


def _is_normed(value: ir.Value) -> bool:
    return any(
        use.node.op_type == "LayerNormalization" or (use.node.op_type in _RESHAPING and _is_normed(use.node.outputs[0]))
        for use in value.uses()
        if use.idx == 0
    )


def _negated(edit: GraphEditor, model: ir.Model, value: ir.Value) -> ir.Value:
    """`value` with the other sign; a weight is negated when it is written."""
    if not is_weight(value):
        return edit.op("Neg", value)
    original = weight_of(value)
    dtype = original.dtype.numpy()

    def content() -> NDArray[Any]:
        negative: NDArray[Any] = -original.numpy()
        return negative

    name = f"{value.name}_negated"
    return add_initializer(model, name, computed_tensor(name, original.shape.numpy(), dtype, content))
