"""Finding the products with a constant matrix: those with the weights of a model."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qeff_framework.lowering.values import is_weight, made_by, operand
from qeff_framework.lowering.weights import weight_of


@dataclass(frozen=True, kw_only=True)
class ConstantProduct:
    """``left [...,K] @ weight [K,N]`` of floats, or ``@ weight.T`` of ``[N,K]``, plus ``bias [N]``."""

    node: ir.Node
    left: ir.Value
    #: An initializer, also where a ``Transpose`` stands between it and the product.
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node) -> ConstantProduct | None:
        """What a ``MatMul`` or a plain ``Gemm`` computes; `None` for other nodes and when the right side is no weight matrix."""
        if node.domain or node.op_type not in ("MatMul", "Gemm"):
            return None
        attributes = node.attributes
        if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != attributes.get_float("beta", 1.0):
            return None
        if attributes.get_float("alpha", 1.0) != 1.0:
            return None
        weight, transposed = operand(node, 1), bool(attributes.get_int("transB", 0))
        transpose = made_by(weight, "Transpose")
        if transpose is not None:
            weight, transposed = operand(transpose, 0), not transposed
        if not is_weight(weight) or len(weight_of(weight).shape) != 2:
            return None
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        return cls(node=node, left=operand(node, 0), weight=weight, transposed=transposed, bias=bias)

    @property
    def sizes(self) -> tuple[int, int]:
        """K and N."""
        rows, columns = (int(size) for size in weight_of(self.weight).shape.numpy())
        return (columns, rows) if self.transposed else (rows, columns)


def constant_products(model: ir.Model) -> list[ConstantProduct]:
    """All products with a constant matrix, those in subgraphs included, in graph order."""
    return [product for node in model.graph.all_nodes() if (product := ConstantProduct.of(node)) is not None]
