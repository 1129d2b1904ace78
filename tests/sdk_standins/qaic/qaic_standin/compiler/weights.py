"""Finds the constant weights of matrix products."""

from __future__ import annotations

import onnx
import onnx.inliner


def matmul_weight_axes(model: onnx.ModelProto) -> dict[str, int]:
    """Initializer name -> the axis that the matrix product sums over, for every constant right-hand side.

    A weight that is transposed by a node of its own before the product counts, because exporters write linear layers so; a cast
    of a constant is a constant.
    """
    inlined = onnx.inliner.inline_local_functions(model)
    weights = {tensor.name: len(tensor.dims) for tensor in inlined.graph.initializer}
    casts = {
        node.output[0]: node.input[0]
        for node in inlined.graph.node
        if node.op_type == "Cast" and node.input[0] in weights
    }
    weights |= {name: weights[source] for name, source in casts.items()}
    transposed = {
        node.output[0]: node.input[0]
        for node in inlined.graph.node
        if node.op_type == "Transpose" and weights.get(node.input[0]) == 2
    }
    axes: dict[str, int] = {}
    for node in inlined.graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = node.input[1]
        is_swapped = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        weight = casts.get(weight, weight)
        if weight in transposed:
            weight, is_swapped = transposed[weight], not is_swapped
            weight = casts.get(weight, weight)
        if weights.get(weight, 0) > 1:
            axes[weight] = -1 if is_swapped else -2
    return axes
