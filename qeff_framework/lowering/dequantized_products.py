"""``QuantizedMatMul`` becomes a plain product, for compilers that take no blocks of few bits, or make their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.dialect.reference import quantized_matrix
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.nodes import QuantizedMatMulNode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import is_weight
from qeff_framework.lowering.weights import computed_tensor, weight_of


class DequantizedProducts(DialectPass[QuantizedMatMulNode]):
    """Lowers each product whose blocks are constants to a ``MatMul`` with a float32 matrix, made when it is written."""

    name = "DequantizedProducts"
    version = "1"
    node_type = QuantizedMatMulNode

    def lower(self, node: QuantizedMatMulNode, edit: GraphEditor) -> ir.Value | None:
        """``[...,N]``."""
        parts = (node.levels, node.scales, node.zero_points)
        if not all(is_weight(value) for value in parts):
            return None
        name = f"{node.levels.name}_matrix"
        matrix = edit.model.graph.initializers.get(name)
        if matrix is None:
            levels, scales, zero_points = (weight_of(value) for value in parts)
            bits, input_size = node.bits, node.input_size

            def content() -> NDArray[Any]:
                arrays = (levels.numpy(), scales.numpy(), zero_points.numpy())
                return np.ascontiguousarray(quantized_matrix(*arrays, bits=bits, input_size=input_size))

            matrix = add_initializer(
                edit.model, name, computed_tensor(name, (input_size, node.output_size), np.float32, content)
            )
        return edit.op("MatMul", node.hidden, matrix)
