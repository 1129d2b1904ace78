"""Sines and cosines of numbers that the caller gives are taken out of the graphs: they become inputs that the host computes.

The NPU's own numbers are float16, which hold neither a time step of 888.4 nor its product with a frequency: an angle near 888 is
wrong by up to a quarter of a radian. Sines of positions are looked up in tables (`RotaryTables`); a time step is any number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from qeff_framework.lowering import Computation, GraphEditor, RemoveUnused, nodes_of

#: Axes of what sines are taken of: a number for each row, or a few. Longer inputs are contents such as pictures.
_MOST_AXES = 2
#: Ops whose results have an axis that no input of angles needs.
_LEARNED = ("Conv", "ConvTranspose", "Gather")


@dataclass(frozen=True, kw_only=True)
class ComputedInput:
    """What a graph takes instead of computing it."""

    #: The new input.
    input: str
    #: The input that it is computed from, which may be one no longer.
    ids: str
    #: Computes it.
    model: ir.Model


def take_out_angles(models: Iterable[ir.Model]) -> list[ComputedInput]:
    """Takes each ``Sin`` and ``Cos`` of a small input of the graph, and of nothing else, out of all graphs of a model."""
    found: list[ComputedInput] = []
    for model in models:
        small = [each for each in model.graph.inputs if each.shape is not None and len(each.shape) <= _MOST_AXES]
        for node in nodes_of(model, "Cos", "Sin"):
            angles = Computation.of(node.outputs[0], small)
            if angles is None or len(angles.inputs) != 1 or any(each.op_type in _LEARNED for each in angles.nodes):
                continue
            (given,) = angles.inputs
            name = f"{given.name}_{node.op_type.lower()}_{len(found)}"
            found.append(ComputedInput(input=name, ids=str(given.name), model=angles.as_model()))
            value = ir.Value(name=name, type=node.outputs[0].type, shape=node.outputs[0].shape)
            model.graph.inputs.append(value)
            GraphEditor(model, node).replace(node, value)
        if found:
            RemoveUnused()(model)
        for given in small:
            if any(one.ids == given.name for one in found) and not given.uses():
                model.graph.inputs.remove(given)
    return found
