"""``MoE`` becomes ONNX Runtime's MoE, which multiplies each chosen expert's weight where it lies, or its QMoE, whose weights are
compressed.

Beside the body, which gathers weights or computes every expert, it takes less than half the time for one token and for a chunk.

The kernel routes by itself: it takes the k largest router values of a token and their softmax. The logarithms of the given
weights, and a number below all of them for experts that are not chosen, come out as the weights over their sum. The kernel wants
gate and linear part in alternating columns, and each matrix transposed; the weights are written that way at compile time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from ort_sim_backend.lowering.kernels import CONTRIB, INT8_ACTIVATIONS
from qeff_framework.lowering import (
    Activation,
    DialectPass,
    Gate,
    GraphEditor,
    MoENode,
    QuantizedMoENode,
    WeightBlocks,
    add_initializer,
    computed_tensor,
    is_weight,
    matrices_of,
    static_dim,
    weight_of,
)

Numbers = NDArray[np.float32]

#: Router values of experts that are not chosen; less than the logarithm of `_SMALLEST`.
_NEVER = -1e9
#: A weight of zero has no logarithm. The smallest normal float32 adds nothing to a sum.
_SMALLEST = 1.1754944e-38


class FusedExperts(DialectPass[MoENode]):
    """Lowers each ``MoE`` in float32 with a SiLU-like gate, or with SiLU or ReLU without one, whose weights are constants."""

    name = "FusedExperts"
    version = "3"
    node_type = MoENode

    def __init__(self, blocks: WeightBlocks | None = None) -> None:
        #: How weights are compressed; a mixture whose sizes are no multiples of a block keeps them as they are.
        self._blocks = blocks

    def lower(self, node: MoENode, edit: GraphEditor) -> ir.Value | None:
        """``[T, H]``."""
        attributes = kernel_attributes(node.gate)
        if attributes is None or not _is_plain(node):
            return None
        return _lower(node, attributes, edit, self._blocks)


def kernel_attributes(gate: Gate) -> dict[str, float | str] | None:
    """The kernel's name for the activation, `None` where it has none. GELU is left to the body: it has only that by tanh."""
    if gate.gated:
        if gate.activation != Activation.SWISH:
            return None
        found: dict[str, float | str] = {
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": gate.alpha,
        }
        found["activation_beta"] = gate.offset
        return {**found, "swiglu_limit": gate.limit} if gate.limit else found
    if gate.activation == Activation.RELU:
        return {"activation_type": "relu"}
    return {"activation_type": "silu"} if gate.activation == Activation.SWISH and gate.alpha == 1.0 else None


def _is_plain(node: MoENode) -> bool:
    """The kernel needs float32 and a known number of choices; what is rewritten must be constant."""
    weights = [value for value in (node.up, node.down, node.up_bias, node.down_bias) if value is not None]
    return (
        node.hidden.dtype == node.expert_weights.dtype == ir.DataType.FLOAT
        and static_dim(node.expert_ids, 1) is not None
        and all(is_weight(value) and value.dtype == ir.DataType.FLOAT for value in weights)
    )


def _lower(
    node: MoENode, attributes: dict[str, float | str], edit: GraphEditor, blocks: WeightBlocks | None
) -> ir.Value:
    up, down, weights = node.up, node.down, _Weights(edit.model)
    split = bool(node.gate.gated) and not node.gate.interleaved
    up_bias = weights.alternating(node.up_bias) if split and node.up_bias is not None else node.up_bias
    values, total = router_values(edit, node, experts=_size(up, 0))
    attributes = {**attributes, "k": _size(node.expert_ids, 1), "normalize_routing_weights": 1}
    first: tuple[ir.Value, ...]
    second: tuple[ir.Value, ...]
    if blocks is not None and not _size(up, 1) % blocks.size and not _size(down, 1) % blocks.size:
        op_type = "QMoE"
        attributes |= {"expert_weight_bits": blocks.bits, "block_size": blocks.size, "weights_prepacked": 0}
        attributes["accuracy_level"] = INT8_ACTIVATIONS
        first = weights.compressed(up, blocks, alternating=split)
        second = weights.compressed(down, blocks, alternating=False)
    else:
        op_type = "MoE"
        first = (weights.transposed(up, alternating=split),)
        second = (weights.transposed(down, alternating=False),)
    inputs = (node.hidden, values, *first, up_bias, *second, node.down_bias)
    normed = edit.op(op_type, *inputs, domain=CONTRIB, **attributes)
    return edit.op("Mul", normed, total)


def router_values(edit: GraphEditor, node: MoENode | QuantizedMoENode, *, experts: int) -> tuple[ir.Value, ir.Value]:
    """What makes the kernel choose these experts, ``[T, E]``, and the sum of a token's weights, ``[T, 1]``."""
    smallest = edit.scalar_like(_SMALLEST, node.expert_weights)
    logarithms = edit.op("Log", edit.op("Max", node.expert_weights, smallest))
    shape = edit.op("Concat", edit.dim(node.expert_ids, 0), edit.int64s(experts), axis=0)
    never = edit.op("Expand", edit.scalar_like(_NEVER, node.expert_weights), shape)
    values = edit.op("ScatterElements", never, node.expert_ids, logarithms, axis=1)
    total = edit.op("ReduceSum", node.expert_weights, edit.int64s(1), keepdims=1)
    return values, total


class _Weights:
    """Weights as the kernels want them, each once however many mixtures read it."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def transposed(self, weight: ir.Value, *, alternating: bool) -> ir.Value:
        """``[E, in, out]`` as ``[E, out, in]``; with `alternating`, gate and linear columns in turns."""
        experts, rows, columns = (_size(weight, axis) for axis in range(3))
        content = _content(weight, alternating=alternating)
        return self._constant(
            weight, "", (experts, columns, rows), np.float32, lambda: np.ascontiguousarray(content().swapaxes(-1, -2))
        )

    def compressed(self, weight: ir.Value, blocks: WeightBlocks, *, alternating: bool) -> tuple[ir.Value, ir.Value]:
        """As `transposed`, compressed: levels ``[E, out, bytes]`` and scales ``[E, out, blocks]``."""
        experts, rows, columns = (_size(weight, axis) for axis in range(3))
        source, count = weight_of(weight), blocks.count(rows)
        shapes = {"_blocks": (experts, columns, count * blocks.bytes), "_scales": (experts, columns, count)}
        kept: dict[str, NDArray[Any]] = {}

        def part(suffix: str) -> NDArray[Any]:
            # Both are written one after the other, and made at once, from some experts at a time.
            if suffix not in kept:
                kept["_blocks"] = np.empty(shapes["_blocks"], np.uint8)
                kept["_scales"] = np.empty(shapes["_scales"], np.float32)
                for number, expert in enumerate(matrices_of(source)):
                    matrix = alternating_columns(expert) if alternating else expert
                    made = blocks.compressed([matrix.T], columns, rows)
                    kept["_blocks"][number] = made.levels.reshape(columns, -1)
                    kept["_scales"][number] = made.scales
            return kept.pop(suffix)

        levels = self._constant(weight, "_blocks", shapes["_blocks"], np.uint8, lambda: part("_blocks"))
        return levels, self._constant(weight, "_scales", shapes["_scales"], np.float32, lambda: part("_scales"))

    def alternating(self, bias: ir.Value) -> ir.Value:
        """``[E, out]`` with gate and linear columns in turns."""
        return self._constant(bias, "", (_size(bias, 0), _size(bias, 1)), np.float32, _content(bias, alternating=True))

    def _constant(
        self,
        weight: ir.Value,
        suffix: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        content: Callable[[], NDArray[np.generic]],
    ) -> ir.Value:
        name = f"{weight.name}_MoE{suffix}"
        known = self._model.graph.initializers.get(name)
        return (
            add_initializer(self._model, name, computed_tensor(name, shape, dtype, content)) if known is None else known
        )


def _content(weight: ir.Value, *, alternating: bool) -> Callable[[], Numbers]:
    source = weight_of(weight)
    return (lambda: alternating_columns(source.numpy())) if alternating else source.numpy


def _size(value: ir.Value, axis: int) -> int:
    size = static_dim(value, axis)
    if size is None:
        raise ValueError(f"dimension {axis} of {value.name} is not known")
    return size


def alternating_columns(array: Numbers) -> Numbers:
    """The first and the second half of the last axis, column by column in turns."""
    halves = array.reshape(*array.shape[:-1], 2, -1)
    return halves.swapaxes(-1, -2).reshape(array.shape)
