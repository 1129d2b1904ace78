"""``QuantizedMoE`` becomes ``QMoE``, over the checkpoint's own levels, scales and zero points.

With 4 bits the kernel computes with float32 activations where it is asked to, and the result differs from that of the dequantised
weights by the order of the sums alone. Its code for 8 bits makes 8-bit numbers of the activations whatever it is asked
(ONNX Runtime 1.32: a deviation of 1 % of the largest result), so without `int8_activations` those blocks are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.lowering.experts import alternating_columns, kernel_attributes, router_values
from ort_sim_backend.lowering.kernels import CONTRIB, FLOAT32_ACTIVATIONS, INT8_ACTIVATIONS
from qeff_framework.lowering import (
    DialectPass,
    GraphEditor,
    QuantizedMoENode,
    add_initializer,
    computed_tensor,
    is_weight,
    require_shape,
    static_dim,
    weight_of,
)

_Array = NDArray[Any]


class KeptExperts(DialectPass[QuantizedMoENode]):
    """Lowers each mixture whose blocks are constants and fill its sizes. `int8_activations`: faster, with other logits."""

    name = "KeptExperts"
    version = "1"
    node_type = QuantizedMoENode

    def __init__(self, *, int8_activations: bool = False) -> None:
        self._accuracy_level = INT8_ACTIVATIONS if int8_activations else FLOAT32_ACTIVATIONS

    def lower(self, node: QuantizedMoENode, edit: GraphEditor) -> ir.Value | None:
        """``[T, H]``."""
        attributes = kernel_attributes(node.gate)
        if attributes is None or not self._fits(node):
            return None
        split = bool(node.gate.gated) and not node.gate.interleaved
        up = _blocks(edit.model, (node.up_levels, node.up_scales, node.up_zero_points), node.bits, split=split)
        down = _blocks(edit.model, (node.down_levels, node.down_scales, node.down_zero_points), node.bits, split=False)
        up_bias = node.up_bias
        if up_bias is not None and split:
            up_bias = _constant(edit.model, up_bias, "QMoE", require_shape(up_bias), alternating_columns)
        values, total = router_values(edit, node, experts=require_shape(node.up_levels)[0])
        first = (node.hidden, values, *up[:2], up_bias, *down[:2], node.down_bias)
        normed = edit.op(
            "QMoE",
            *first,
            *(None,) * 3,
            up[2],
            down[2],
            domain=CONTRIB,
            **attributes,
            k=static_dim(node.expert_ids, 1),
            normalize_routing_weights=1,
            expert_weight_bits=node.bits,
            block_size=node.block_size,
            weights_prepacked=0,
            accuracy_level=self._accuracy_level,
        )
        return edit.op("Mul", normed, total)

    def _fits(self, node: QuantizedMoENode) -> bool:
        constants = [value for value in node.node.inputs[3:] if value is not None]
        return (
            (node.bits == 4 or self._accuracy_level == INT8_ACTIVATIONS)
            and node.hidden.dtype == node.expert_weights.dtype == ir.DataType.FLOAT
            and static_dim(node.expert_ids, 1) is not None
            and all(is_weight(value) for value in constants)
            and not node.hidden_size % node.block_size
            and not node.inner_size % node.block_size
        )


def _blocks(
    model: ir.Model, parts: tuple[ir.Value, ir.Value, ir.Value], bits: int, *, split: bool
) -> tuple[ir.Value, ...]:
    """Levels, scales and zero points as the kernel takes them; with `split`, rows of gate and linear half in turns."""
    experts, rows, blocks, width = require_shape(parts[0])
    order = _alternating_rows if split else _same

    def flat(levels: _Array) -> _Array:
        return order(levels).reshape(experts, rows, blocks * width)

    def packed(zero_points: _Array) -> _Array:
        ordered = order(zero_points)
        if bits == 8:
            return ordered
        # Two of a row in a byte; an odd row is filled up.
        whole = np.pad(ordered, ((0, 0), (0, 0), (0, blocks % 2)))
        result: _Array = whole[..., 0::2] | whole[..., 1::2] << 4
        return result

    name = "QMoE_split" if split else "QMoE"
    return (
        _constant(model, parts[0], name, (experts, rows, blocks * width), flat),
        _constant(model, parts[1], name, (experts, rows, blocks), order) if split else parts[1],
        _constant(model, parts[2], name, (experts, rows, blocks if bits == 8 else -(-blocks // 2)), packed),
    )


def _constant(
    model: ir.Model, source: ir.Value, suffix: str, shape: tuple[int, ...], change: Callable[[_Array], _Array]
) -> ir.Value:
    """What `change` makes of a weight when it is written, once however many mixtures read it."""
    name = f"{source.name}_{suffix}"
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    tensor = weight_of(source)
    return add_initializer(
        model, name, computed_tensor(name, shape, tensor.dtype.numpy(), lambda: change(tensor.numpy()))
    )


def _alternating_rows(array: _Array) -> _Array:
    """The first and the second half of axis 1, in turns."""
    halves = array.reshape(array.shape[0], 2, -1, *array.shape[2:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _same(array: _Array) -> _Array:
    return array
