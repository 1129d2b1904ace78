"""``QuantizedMoE`` becomes ``MoE``, for compilers that take no blocks of few bits, or make their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.dialect.functions import attach_functions
from qeff_framework.dialect.names import DOMAIN, Op
from qeff_framework.dialect.reference import quantized_experts
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.nodes import QuantizedMoENode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import is_weight, require_shape
from qeff_framework.lowering.weights import computed_tensor, weight_of


class DequantizedExperts(DialectPass[QuantizedMoENode]):
    """Lowers each mixture whose blocks are constants to a ``MoE`` with float32 matrices, made when they are written.

    Put it in front of the pass that lowers ``MoE``.
    """

    name = "DequantizedExperts"
    version = "1"
    node_type = QuantizedMoENode

    def run(self, model: ir.Model) -> bool:
        """Lowers each node in graph order, and adds the body of what takes its place."""
        changed = super().run(model)
        if changed:
            attach_functions(model)
        return changed

    def lower(self, node: QuantizedMoENode, edit: GraphEditor) -> ir.Value | None:
        """``[T,H]``."""
        up = (node.up_levels, node.up_scales, node.up_zero_points)
        down = (node.down_levels, node.down_scales, node.down_zero_points)
        if not all(is_weight(value) for value in (*up, *down)):
            return None
        inputs: list[ir.Value | None] = [
            node.hidden,
            node.expert_ids,
            node.expert_weights,
            _matrices(edit.model, up, bits=node.bits, input_size=node.hidden_size),
            _matrices(edit.model, down, bits=node.bits, input_size=node.inner_size),
        ]
        op = Op.MOE
        if node.up_bias is not None:
            op = Op.MOE_BIAS
            inputs += [node.up_bias, node.down_bias]
        gate = {name: attribute.value for name, attribute in node.node.attributes.items() if name != "bits"}
        result = edit.op(op, *inputs, domain=DOMAIN, **gate)
        result.type, result.shape = node.output.type, node.output.shape
        return result


def _matrices(model: ir.Model, parts: tuple[ir.Value, ir.Value, ir.Value], *, bits: int, input_size: int) -> ir.Value:
    """float32 ``[E,in,out]``, one initializer however many mixtures read the blocks."""
    name = f"{parts[0].name}_matrices"
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    experts, outputs = require_shape(parts[0])[:2]
    content = partial(_content, tuple(weight_of(value) for value in parts), bits, input_size)
    return add_initializer(model, name, computed_tensor(name, (experts, input_size, outputs), np.float32, content))


def _content(parts: tuple[ir.TensorProtocol, ...], bits: int, input_size: int) -> NDArray[Any]:
    levels, scales, zero_points = (tensor.numpy() for tensor in parts)
    return quantized_experts(levels, scales, zero_points, bits=bits, input_size=input_size)
