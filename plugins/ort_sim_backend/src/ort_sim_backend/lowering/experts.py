"""``MoE`` becomes ONNX Runtime's MoE, which multiplies each chosen expert's weight where it lies, or its QMoE, whose weights are
compressed.

Beside the body, which gathers weights or computes every expert, it takes less than half the time for one token and for a chunk.

The kernel routes by itself: it takes the k largest router values of a token and their softmax. The logarithms of the given
weights, and a number below all of them for experts that are not chosen, come out as the weights over their sum. The kernel wants
gate and linear part in alternating columns, and each matrix transposed; the weights are written that way at compile time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from ort_sim_backend.lowering.blocks import Blocks, Numbers
from ort_sim_backend.lowering.graph import (
    CONTRIB,
    INT8_ACTIVATIONS,
    Writer,
    computed_constant,
    dialect_nodes,
    like,
    number,
    operand,
    static_dim,
)

#: Numbers that the dialect gives activations (`Activation` in its documentation), and the kernel's names. GELU is left to the
#: body: the kernel has only its approximation by tanh.
_SWISH, _RELU = 0, 3
#: Router values of experts that are not chosen; less than the logarithm of `_SMALLEST`.
_NEVER = -1e9
#: A weight of zero has no logarithm. The smallest normal float32 adds nothing to a sum.
_SMALLEST = 1.1754944e-38


class FusedExperts:
    """Lowers each ``MoE`` in float32 with a SiLU-like gate, or with SiLU or ReLU without one, whose weights are constants."""

    name = "FusedExperts"
    version = "2"

    def __init__(self, blocks: Blocks | None = None) -> None:
        #: How weights are compressed; a mixture whose sizes are no multiples of a block keeps them as they are.
        self._blocks = blocks

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether a mixture was lowered."""
        weights = _Weights(subject.graph)
        lowered = False
        for node in dialect_nodes(subject, "MoE", "MoEBias"):
            attributes = _kernel_attributes(node)
            if attributes is not None and _is_plain(node):
                _lower(node, attributes, weights, self._blocks)
                lowered = True
        return lowered


def _kernel_attributes(node: ir.Node) -> dict[str, float | str] | None:
    """The kernel's name for the activation, `None` where it has none."""
    kind, alpha = int(number(node, "activation", 0)), number(node, "alpha", 1.0)
    if number(node, "gated", 1):
        if kind != _SWISH:
            return None
        found: dict[str, float | str] = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": alpha}
        found["activation_beta"] = number(node, "offset", 0.0)
        limit = number(node, "limit", 0.0)
        return {**found, "swiglu_limit": limit} if limit else found
    if kind == _RELU:
        return {"activation_type": "relu"}
    return {"activation_type": "silu"} if kind == _SWISH and alpha == 1.0 else None


def _is_plain(node: ir.Node) -> bool:
    """The kernel needs float32 and a known number of choices; what is rewritten must be constant."""
    weights = [operand(node, place) for place in range(3, len(node.inputs))]
    return (
        operand(node, 0).dtype == operand(node, 2).dtype == ir.DataType.FLOAT
        and static_dim(operand(node, 1), 1) is not None
        and all(value.is_initializer() and value.dtype == ir.DataType.FLOAT for value in weights)
    )


def _lower(node: ir.Node, attributes: dict[str, float | str], weights: _Weights, blocks: Blocks | None) -> None:
    hidden, expert_ids, shares, up, down = (operand(node, place) for place in range(5))
    split = bool(number(node, "gated", 1)) and not number(node, "interleaved", 0)
    biases: list[ir.Value | None] = [None, None]
    if node.op_type == "MoEBias":
        up_bias = operand(node, 5)
        biases = [weights.alternating(up_bias) if split else up_bias, operand(node, 6)]
    write, mixed = Writer(node), like(node.outputs[0])
    values, total = _router_values(write, expert_ids, shares, experts=_size(up, 0))
    normed = ir.Value(type=ir.TensorType(ir.DataType.FLOAT))
    attributes = {**attributes, "k": _size(expert_ids, 1), "normalize_routing_weights": 1}
    matrices: list[tuple[ir.Value, ...]]
    if blocks is not None and not _size(up, 1) % blocks.size and not _size(down, 1) % blocks.size:
        op_type = "QMoE"
        attributes |= {"expert_weight_bits": blocks.bits, "block_size": blocks.size, "weights_prepacked": 0}
        attributes["accuracy_level"] = INT8_ACTIVATIONS
        matrices = [
            weights.compressed(up, blocks, alternating=split),
            weights.compressed(down, blocks, alternating=False),
        ]
    else:
        op_type = "MoE"
        matrices = [(weights.transposed(up, alternating=split),), (weights.transposed(down, alternating=False),)]
    (first, second), (first_bias, second_bias) = matrices, biases
    write.ops(op_type, [hidden, values, *first, first_bias, *second, second_bias], [normed], CONTRIB, attributes)
    write.ops("Mul", [normed, total], [mixed], "", {})
    write.replace(node, [mixed])


def _router_values(
    write: Writer, expert_ids: ir.Value, weights: ir.Value, *, experts: int
) -> tuple[ir.Value, ir.Value]:
    """What makes the kernel choose these experts, ``[T, E]``, and the sum of a token's weights, ``[T, 1]``."""
    smallest = write.op("Constant", value_float=_SMALLEST)
    logarithms = write.op("Log", write.op("Max", weights, smallest))
    tokens = write.dim(expert_ids, 0)
    shape = write.op("Concat", tokens, write.vector(experts), axis=0)
    never = write.op("Expand", write.op("Constant", value_float=_NEVER), shape)
    values = write.op("ScatterElements", never, expert_ids, logarithms, axis=1)
    total = write.op("ReduceSum", weights, write.vector(1), keepdims=1)
    return values, total


class _Weights:
    """Weights as the kernels want them, each once however many mixtures read it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def transposed(self, weight: ir.Value, *, alternating: bool) -> ir.Value:
        """``[E, in, out]`` as ``[E, out, in]``; with `alternating`, gate and linear columns in turns."""
        experts, rows, columns = (_size(weight, axis) for axis in range(3))
        content = _content(weight, alternating=alternating)
        return self._constant(
            weight, "", (experts, columns, rows), np.float32, lambda: np.ascontiguousarray(content().swapaxes(-1, -2))
        )

    def compressed(self, weight: ir.Value, blocks: Blocks, *, alternating: bool) -> tuple[ir.Value, ir.Value]:
        """As `transposed`, compressed: levels ``[E, out, bytes]`` and scales ``[E, out, blocks]``."""
        experts, rows, columns = (_size(weight, axis) for axis in range(3))
        content, count = _content(weight, alternating=alternating), blocks.count(rows)
        levels = self._constant(
            weight,
            "_blocks",
            (experts, columns, count * blocks.bytes),
            np.uint8,
            lambda: blocks.levels(content().swapaxes(-1, -2)).reshape(experts, columns, -1),
        )
        scales = self._constant(
            weight,
            "_scales",
            (experts, columns, count),
            np.float32,
            lambda: blocks.scales(content().swapaxes(-1, -2)),
        )
        return levels, scales

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
        known = self._graph.initializers.get(name)
        return computed_constant(self._graph, name, shape, dtype, content) if known is None else known


def _content(weight: ir.Value, *, alternating: bool) -> Callable[[], Numbers]:
    source = weight.const_value
    if source is None:
        raise ValueError(f"the weight {weight.name} has no content")
    return (lambda: _alternating(source.numpy())) if alternating else source.numpy


def _size(value: ir.Value, axis: int) -> int:
    size = static_dim(value, axis)
    if size is None:
        raise ValueError(f"dimension {axis} of {value.name} is not known")
    return size


def _alternating(array: Numbers) -> Numbers:
    """The first and the second half of the last axis, column by column in turns."""
    halves = array.reshape(*array.shape[:-1], 2, -1)
    return halves.swapaxes(-1, -2).reshape(array.shape)
