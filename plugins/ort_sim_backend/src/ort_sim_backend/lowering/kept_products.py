"""``QuantizedMatMul`` becomes ``MatMulNBits``, over the checkpoint's own levels, scales and zero points.

With float32 activations the result differs from that of the dequantised weights by the order of the sums alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.lowering.kernels import CONTRIB, FLOAT32_ACTIVATIONS, INT8_ACTIVATIONS
from qeff_framework.lowering import (
    DialectPass,
    GraphEditor,
    QuantizedMatMulNode,
    add_initializer,
    computed_tensor,
    is_weight,
    weight_of,
)


class KeptProducts(DialectPass[QuantizedMatMulNode]):
    """Lowers each product whose blocks are constants. `int8_activations`: faster, with other logits."""

    name = "KeptProducts"
    version = "1"
    node_type = QuantizedMatMulNode

    def __init__(self, *, int8_activations: bool = False) -> None:
        self._accuracy_level = INT8_ACTIVATIONS if int8_activations else FLOAT32_ACTIVATIONS

    def lower(self, node: QuantizedMatMulNode, edit: GraphEditor) -> ir.Value | None:
        """``[...,N]``."""
        if not is_weight(node.zero_points) or node.hidden.dtype not in (None, ir.DataType.FLOAT):
            return None
        return edit.op(
            "MatMulNBits",
            node.hidden,
            node.levels,
            node.scales,
            _packed_zero_points(node, edit.model),
            domain=CONTRIB,
            K=node.input_size,
            N=node.output_size,
            bits=node.bits,
            block_size=node.block_size,
            accuracy_level=self._accuracy_level,
        )


def _packed_zero_points(node: QuantizedMatMulNode, model: ir.Model) -> ir.Value:
    """The kernel wants two 4-bit zero points of a row in a byte; an odd row is filled up."""
    if node.bits == 8:
        return node.zero_points
    name = f"{node.zero_points.name}_packed"
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    source = weight_of(node.zero_points)
    rows, blocks = (int(size) for size in source.shape.numpy())

    def content() -> NDArray[Any]:
        whole = np.pad(source.numpy(), ((0, 0), (0, blocks % 2)))
        packed: NDArray[Any] = whole[:, 0::2] | whole[:, 1::2] << 4
        return packed

    return add_initializer(model, name, computed_tensor(name, (rows, -(-blocks // 2)), np.uint8, content))
