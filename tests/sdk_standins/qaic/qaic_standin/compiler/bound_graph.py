"""Binds the symbols of a graph and finds the static shape of every input and output (rows C9, C11, C12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import onnx
import onnx.inliner
import onnx.shape_inference

from .errors import compile_failed
from .graph_walk import real_inputs
from .specializations import Specialization

Dims = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BoundGraph:
    """Static dims of every input and output under one specialization, in the graph's order of names."""

    name: str
    dims: Mapping[str, Dims]


def bind_graph(model: onnx.ModelProto, specializations: Sequence[Specialization]) -> tuple[BoundGraph, ...]:
    """Bind each specialization.

    Raises:
        CompileError: an unbound symbol, a shape that inference refuses or cannot find, or entries that no single input
            tells apart.
    """
    inlined = onnx.inliner.inline_local_functions(model)
    bound = tuple(_bind(inlined, entry, index) for index, entry in enumerate(specializations))
    _check_distinguishable(bound, [value.name for value in real_inputs(model)])
    return bound


def _bind(model: onnx.ModelProto, entry: Specialization, index: int) -> BoundGraph:
    label = f"specialization {entry.name or index}"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in real_inputs(copy):
        _bind_input(value, entry.symbols, label)
    for value in (*copy.graph.output, *copy.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in entry.symbols:
                dim.dim_value = entry.symbols[dim.dim_param]
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise compile_failed(f"Shape inference of {label} failed: {error}") from error
    return BoundGraph(
        name=entry.name,
        dims={value.name: _static_dims(value, label) for value in (*real_inputs(copy), *inferred.graph.output)},
    )


def _bind_input(value: onnx.ValueInfoProto, symbols: Mapping[str, int], label: str) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            if dim.dim_param not in symbols:
                what = f"'{dim.dim_param}'" if dim.dim_param else "without a name"
                raise compile_failed(f"Symbol {what} of input '{value.name}' is not defined by {label}")
            dim.dim_value = symbols[dim.dim_param]
        if dim.dim_value <= 0:
            raise compile_failed(f"Input '{value.name}' has dimension {dim.dim_value} under {label}")


def _static_dims(value: onnx.ValueInfoProto, label: str) -> Dims:
    dims = value.type.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        shown = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise compile_failed(f"Output '{value.name}' has no static shape under {label}: {shown}")
    return tuple(dim.dim_value for dim in dims)


def _check_distinguishable(bound: Sequence[BoundGraph], inputs: Sequence[str]) -> None:
    def is_unique(name: str) -> bool:
        return all(a.dims[name] != b.dims[name] for a, b in combinations(bound, 2))

    if len(bound) > 1 and not any(is_unique(name) for name in inputs):
        raise compile_failed("No input that uniquely identifies specialization")
