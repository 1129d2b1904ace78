"""Pairs retained outputs with their inputs (row C14)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from .bound_graph import BoundGraph
from .errors import compile_failed
from .graph_walk import real_inputs

SUFFIX = "_RetainedState"
_INTERNAL_SUFFIX = "_InternalRetainedState"


def retained_pairs(model: onnx.ModelProto, bound: Sequence[BoundGraph]) -> dict[str, str]:
    """Input name -> output name of every retained tensor, in the order of the outputs.

    Raises:
        CompileError: an internal name, no such input, or a difference of type or shape.
    """
    inputs = {value.name: value for value in real_inputs(model)}
    pairs = {}
    for output in model.graph.output:
        if output.name.endswith(_INTERNAL_SUFFIX):
            raise compile_failed(f"Output '{output.name}' has an internal name; rename it to end in '{SUFFIX}'")
        if not output.name.endswith(SUFFIX):
            continue
        name = output.name.removesuffix(SUFFIX)
        if name not in inputs:
            raise compile_failed(f"Retained state output '{output.name}' has no input named '{name}'")
        if inputs[name].type.tensor_type.elem_type != output.type.tensor_type.elem_type:
            raise compile_failed(f"Retained state '{name}' and '{output.name}' have different types")
        for entry in bound:
            if entry.dims[name] != entry.dims[output.name]:
                raise compile_failed(
                    f"Retained state '{name}' {list(entry.dims[name])} and '{output.name}' "
                    f"{list(entry.dims[output.name])} have different shapes"
                )
        pairs[name] = output.name
    return pairs
