"""The constant matrices of products become numbers of MXFP6 (E2M3), in blocks along the axis that the product sums over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ort_sim_backend.number_formats import round_mxfp6
from qeff_framework.lowering import (
    GraphEditor,
    GraphPass,
    add_initializer,
    computed_tensor,
    is_weight,
    made_by,
    weight_of,
)


class MXFP6Weights(GraphPass):
    """Gives each ``MatMul`` and ``Gemm`` with a constant right side a weight of rounded numbers, in subgraphs as well.

    A weight that something else reads too, such as the table of embeddings, stays as it is for that reader. Weights that a node
    chooses from at run time are no constant of the product, and stay as they are.
    """

    name = "MXFP6Weights"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether there was such a product."""
        found = [(node, weight) for node in model.graph.all_nodes() if (weight := _weight_of(node)) is not None]
        for node, weight in found:
            rounded = _rounded(model, weight)
            if weight.permutation is not None:
                rounded = GraphEditor(model, node).op("Transpose", rounded, perm=weight.permutation)
            node.replace_input_with(1, rounded)
        return bool(found)


@dataclass(frozen=True, kw_only=True)
class _Weight:
    value: ir.Value
    #: Of the ``Transpose`` between the weight and the product.
    permutation: tuple[int, ...] | None
    #: The axis of `value` that the product sums over.
    axis: int


def _weight_of(node: ir.Node) -> _Weight | None:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    value, permutation = node.inputs[1], None
    transpose = None if value is None else made_by(value, "Transpose")
    if transpose is not None:
        value = transpose.inputs[0]
    if value is None or not is_weight(value) or value.dtype != ir.DataType.FLOAT:
        return None
    rank = len(weight_of(value).shape)
    if rank < 2:
        return None
    is_turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    axis = rank - 1 if is_turned else rank - 2
    if transpose is not None:
        default = tuple(reversed(range(rank)))
        permutation = tuple(transpose.attributes.get_ints("perm", default))
        axis = permutation[axis]
    return _Weight(value=value, permutation=permutation, axis=axis)


def _rounded(model: ir.Model, weight: _Weight) -> ir.Value:
    """The initializer with the rounded numbers; products that sum over one axis share it."""
    name = f"{weight.value.name}_mxfp6_{weight.axis}"
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    source = weight_of(weight.value)
    shape = source.shape.numpy()
    tensor = computed_tensor(name, shape, np.float32, lambda: round_mxfp6(source.numpy(), axis=weight.axis))
    return add_initializer(model, name, tensor)
