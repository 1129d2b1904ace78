"""Builds the host's view of a program: bindings and the dims of every entry (rows R6 and C6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto

from ..program_description import Binding, Entry
from .bound_graph import BoundGraph, Dims
from .custom_io import CustomIo
from .data_types import CUSTOM_PRECISIONS, ELEMENT_TYPES
from .errors import compile_failed
from .graph_walk import all_nodes, rank_of, real_inputs
from .target import supports_bfloat16


def check_types(model: onnx.ModelProto, target: str) -> None:
    """Refuse IO types without a number in the IO descriptor, and bfloat16 anywhere on a device that has none.

    Raises:
        CompileError: naming the tensor.
    """
    for value in (*real_inputs(model), *model.graph.output):
        element_type = value.type.tensor_type.elem_type
        if element_type not in ELEMENT_TYPES:
            kind = TensorProto.DataType.Name(element_type)
            raise compile_failed(f"Input or output '{value.name}' has the unsupported type {kind}")
    if not supports_bfloat16(target):
        for name in _bfloat16_names(model):
            raise compile_failed(f"bfloat16 tensor '{name}' is not supported on {target}")


def make_bindings(
    model: onnx.ModelProto, custom: Mapping[str, CustomIo], pairs: Mapping[str, str]
) -> tuple[Binding, ...]:
    """Bindings in index order: inputs, then outputs."""
    partners = {**pairs, **{output: name for name, output in pairs.items()}}
    inputs = real_inputs(model)
    return tuple(
        _binding(
            value,
            is_input=position < len(inputs),
            custom=custom.get(value.name),
            partner=partners.get(value.name, ""),
        )
        for position, value in enumerate((*inputs, *model.graph.output))
    )


def make_entries(bindings: Sequence[Binding], bound: Sequence[BoundGraph]) -> tuple[Entry, ...]:
    """Host-side dims of every entry: channels last where asked for, and (1,) for scalars."""
    return tuple(
        Entry(name=graph.name, dims=tuple(_host_dims(b, graph.dims[b.name]) for b in bindings)) for graph in bound
    )


def _binding(value: onnx.ValueInfoProto, *, is_input: bool, custom: CustomIo | None, partner: str) -> Binding:
    element = ELEMENT_TYPES[value.type.tensor_type.elem_type]
    io_type, size = CUSTOM_PRECISIONS[custom.precision] if custom else (element.io_type, element.size)
    return Binding(
        name=value.name,
        is_input=is_input,
        io_type=io_type,
        element_size=size,
        precision=custom.precision if custom else element.precision,
        graph_type=element.graph_type,
        graph_rank=rank_of(value),
        channels_last=custom.channels_last if custom else False,
        scale=custom.scale if custom else 1.0,
        offset=custom.offset if custom else 0,
        retained_with=partner,
    )


def _host_dims(binding: Binding, dims: Dims) -> Dims:
    if not dims:
        return (1,)
    if binding.channels_last:
        batch, channels, *spatial = dims
        return (batch, *spatial, channels)
    return dims


def _bfloat16_names(model: onnx.ModelProto) -> Iterator[str]:
    for value in (*real_inputs(model), *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            yield value.name
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            yield tensor.name
    for node in all_nodes(model):
        for attribute in node.attribute:
            is_cast = attribute.name == "to" and attribute.i == TensorProto.BFLOAT16
            if is_cast or attribute.t.data_type == TensorProto.BFLOAT16:
                yield node.output[0]
