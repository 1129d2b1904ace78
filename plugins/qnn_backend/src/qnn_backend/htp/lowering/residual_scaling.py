"""The residual stream is made smaller by a power of two where it would leave the range of float16.

Some models add up hidden states of 100 000 and more; float16 ends at 65 504. Every reader of the stream is a norm, which
divides by the size of what it gets, so the whole stream may be smaller: exactly the same result when the norm's epsilon is
divided by the square of the factor. Sums cannot be scaled, so whatever is added to the stream is: the weights of the products,
norms and embeddings that write into it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering import (
    GraphEditor,
    add_initializer,
    computed_tensor,
    content_key,
    graph_of,
    is_weight,
    operand,
    weight_of,
)

#: Values of the stream beyond this are scaled: products with them still fit into the range.
LIMIT = 8192.0

NORMS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")
_DEFAULT_EPSILON = 1e-5
#: Ops whose output is their first input, moved or cut.
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Expand", "Flatten", "GatherElements")
#: Inputs that change the size of the output in proportion when they are weights.
_PROPORTIONAL = {
    "MatMul": (1,),
    "Gemm": (1, 2),
    "Mul": (0, 1),
    "Gather": (0,),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "LayerNormalization": (1, 2),
}


def normed_values(model: ir.Model) -> set[str]:
    """Names of the values that a norm reads."""
    return {str(operand(node, 0).name) for node in model.graph if node.op_type in NORMS}


def factor_for(largest: float) -> int:
    """The least power of two that brings `largest` below the limit; 1 when it is there already."""
    factor = 1
    while largest / factor > LIMIT:
        factor *= 2
    return factor


def scale_residual(model: ir.Model, seeds: Collection[str], factor: int, scaled: ScaledWeights) -> bool:
    """Divides the stream that `seeds` are part of by `factor`; says whether there was one.

    Args:
        model: a static graph.
        seeds: names of values that are too large, inputs of norms.
        factor: a power of two.
        scaled: weights that another graph of the model has scaled already.
    """
    values = [value for node in model.graph for value in node.outputs if value.name in seeds]
    stream = _stream(values)
    for value in stream:
        if not _is_inside(value):
            _scale_source(model, value, factor, scaled)
        elif (node := value.producer()) is not None:
            for index, part in enumerate(_parts(node)):
                if is_weight(part):
                    node.replace_input_with(index, scaled.of(model, operand(node, index), factor))
    for value in stream:
        _shrink_epsilon(value, factor)
        _restore_for_others(model, value, stream, factor)
    return bool(stream)


@dataclass(frozen=True)
class ScaledWeights:
    """Weights divided by a factor, one tensor for all graphs that read it."""

    #: By content: the original, so that its identity stays its own, and what it becomes.
    _tensors: dict[Hashable, tuple[ir.TensorProtocol, ir.TensorProtocol]] = field(default_factory=dict)

    def of(self, model: ir.Model, weight: ir.Value, factor: int) -> ir.Value:
        """A new initializer of `model`: `weight` divided by `factor`, computed when it is written."""
        original = weight_of(weight)
        name, key = f"{weight.name}_by_{factor}", (content_key(original), factor)
        if key not in self._tensors:
            dtype = original.dtype.numpy()

            def content() -> NDArray[Any]:
                return (original.numpy() / np.float32(factor)).astype(dtype)

            self._tensors[key] = (original, computed_tensor(name, original.shape.numpy(), dtype, content))
        return add_initializer(model, name, self._tensors[key][1])


def _stream(seeds: Iterable[ir.Value]) -> dict[ir.Value, None]:
    """Everything that is summed or moved together with the seeds, in the order of discovery."""
    found: dict[ir.Value, None] = {}
    pending = list(seeds)
    while pending:
        value = pending.pop()
        if value in found or is_weight(value):
            continue
        found[value] = None
        if _is_inside(value):
            node = value.producer()
            if node is not None:
                pending.extend(part for part in _parts(node) if part is not None)
        for use in value.uses():
            moved = use.node.op_type in _MOVING and use.idx == 0
            if use.node.op_type in ("Add", "Sub", "Concat") or moved:
                pending.extend(use.node.outputs)
    return found


def _is_inside(value: ir.Value) -> bool:
    """Its producer only sums or moves values of the stream."""
    node = value.producer()
    return node is not None and bool(_parts(node))


def _parts(node: ir.Node) -> tuple[ir.Value | None, ...]:
    if node.op_type in ("Add", "Sub", "Concat"):
        return tuple(node.inputs)
    return (node.inputs[0],) if node.op_type in _MOVING else ()


def _scale_source(model: ir.Model, value: ir.Value, factor: int, scaled: ScaledWeights) -> None:
    """Makes what enters the stream smaller: through a weight if there is one of its own, else by a product."""
    node = value.producer()
    indices = () if node is None else _PROPORTIONAL.get(node.op_type, ())
    if node is not None and indices:
        weights = [index for index in indices if index < len(node.inputs) and is_weight(node.inputs[index])]
        if node.op_type == "Mul":
            weights = weights[:1]
        needed = len([index for index in indices if index < len(node.inputs) and node.inputs[index] is not None])
        complete = bool(weights) and (node.op_type == "Mul" or len(weights) == needed)
        private = all(len(operand(node, index).uses()) == 1 or _is_small(operand(node, index)) for index in weights)
        if complete and private:
            for index in weights:
                node.replace_input_with(index, scaled.of(model, operand(node, index), factor))
            return
    _multiply_for(model, value, [use.node for use in value.uses()], 1.0 / factor)


def _is_small(weight: ir.Value) -> bool:
    """A second copy of it costs nothing."""
    return weight.const_value is not None and weight.const_value.nbytes <= 1 << 20


def _shrink_epsilon(value: ir.Value, factor: int) -> None:
    for use in value.uses():
        if use.node.op_type in NORMS and use.idx == 0:
            epsilon = use.node.attributes.get_float("epsilon", _DEFAULT_EPSILON)
            use.node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon / factor**2)


def _restore_for_others(model: ir.Model, value: ir.Value, stream: Collection[ir.Value], factor: int) -> None:
    """Readers that are neither norms nor part of the stream get the value as it was."""
    others = []
    for use in value.uses():
        node = use.node
        is_norm = node.op_type in NORMS and use.idx == 0
        if is_norm or node.op_type in ("Shape", "Size") or any(output in stream for output in node.outputs):
            continue
        if node.name != _OWN:
            others.append(node)
    if others:
        _multiply_for(model, value, others, float(factor))
    if value.is_graph_output():
        _restore_output(model, value, factor)


#: Name of the products that this pass has put in; they are not readers to restore for.
_OWN = "residual_scale"


def _multiply_for(model: ir.Model, value: ir.Value, readers: Iterable[ir.Node], by: float) -> None:
    readers = list(dict.fromkeys(readers))
    if not readers:
        return
    graph = graph_of(readers[0])
    edit = GraphEditor(model, min(readers, key=graph.index))
    product = edit.op("Mul", value, edit.scalar_like(by, value))
    for node in edit.written:
        node.name = _OWN
    for reader in readers:
        for index, part in enumerate(reader.inputs):
            if part is value:
                reader.replace_input_with(index, product)


def _restore_output(model: ir.Model, value: ir.Value, factor: int) -> None:
    node = value.producer()
    if node is None:
        return
    graph = graph_of(node)
    last = graph[len(graph) - 1]
    position = next(index for index, output in enumerate(graph.outputs) if output is value)
    name, value.name = value.name, f"{value.name}_scaled"
    product = ir.Node("", "Mul", [value, GraphEditor(model, node).scalar_like(float(factor), value)], name=_OWN)
    graph.insert_after(last, product)
    output = product.outputs[0]
    output.name, output.shape, output.type = name, value.shape, value.type
    graph.outputs[position] = output
