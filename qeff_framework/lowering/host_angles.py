"""Sines and cosines of numbers that the caller gives are taken out of a graph: they become inputs that the host computes.

Float16 holds neither a time step of 888.4 nor its product with a frequency: an angle near 888 is wrong by up to a quarter of a
radian. Sines of positions are looked up in tables (`RotaryTables`); a time step is any number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from qeff_framework.lowering.computation import Computation
from qeff_framework.lowering.unused import RemoveUnused
from qeff_framework.lowering.values import operand, static_shape

#: Most axes of inputs that sines are taken of: a number or a few for each row. Longer inputs are contents such as pictures.
_MAX_AXES = 2
#: Ops that arrange sines and cosines before a layer reads them.
_ARRANGING = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Expand",
        "Identity",
        "Mul",
        "Neg",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
    }
    | {"Unsqueeze"}
)
#: Elements of a new input: the host sends it in every step.
_MAX_ELEMENTS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ComputedInput:
    """An input that a graph has instead of a computation."""

    #: Name of the new input.
    input: str
    #: The caller's inputs that `model` reads. The graph may have lost them.
    reads: tuple[str, ...]
    #: Computes the new input. Its inputs have the names in `reads`.
    model: ir.Model


def take_out_angles(models: Iterable[ir.Model]) -> list[ComputedInput]:
    """Replaces sines and cosines of small inputs, and of nothing else, by new inputs of the graphs.

    What only arranges sines and cosines goes with them: a table of rotary embeddings becomes one input. Shapes that are not
    static stay as they are.
    """
    found: list[ComputedInput] = []
    for model in models:
        small = [each for each in model.graph.inputs if each.shape is not None and len(each.shape) <= _MAX_AXES]
        taken = {
            value: part for value in _outermost(model, small) if (part := Computation.of(value, small)) is not None
        }
        for value, part in taken.items():
            name = f"{part.inputs[0].name}_angles_{len(found)}"
            reads = tuple(str(each.name) for each in part.inputs)
            found.append(ComputedInput(input=name, reads=reads, model=part.as_model()))
            new = ir.Value(name=name, type=value.type, shape=value.shape)
            model.graph.inputs.append(new)
            value.replace_all_uses_with(new)
        if not taken:
            continue
        RemoveUnused()(model)
        read = {name for one in found for name in one.reads}
        for given in small:
            if given.name in read and not given.uses():
                model.graph.inputs.remove(given)
    return found


def _outermost(model: ir.Model, small: list[ir.Value]) -> list[ir.Value]:
    """The values that are sines and cosines of `small` or arrangements of these, and that another node reads."""
    angles: dict[ir.Node, None] = {}
    for node in model.graph:
        if node.domain or any(not _fits(value) for value in node.outputs):
            continue
        if node.op_type in _ARRANGING:
            others = [value for value in node.inputs if value is not None and value.producer() not in angles]
            arranges = len(others) < len(node.inputs) and all(_is_constant(value) for value in others)
        else:
            arranges = False
        if node.op_type in ("Cos", "Sin") or arranges:
            part = Computation.of(node.outputs[0], small)
            if part is not None and not any(_is_learned(each) for each in part.nodes):
                angles[node] = None
    return [
        value
        for node in angles
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT
        and not value.is_graph_output()
        and any(use.node not in angles for use in value.uses())
    ]


def _is_learned(node: ir.Node) -> bool:
    """Convolutions and look-ups in tables are layers."""
    return node.op_type in ("Conv", "ConvTranspose") or (node.op_type == "Gather" and _is_constant(operand(node, 0)))


def _is_constant(value: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(value) is not None


def _fits(value: ir.Value) -> bool:
    shape = static_shape(value)
    return shape is not None and math.prod(shape) <= _MAX_ELEMENTS
