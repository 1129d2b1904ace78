"""Prepares the graph that the stand-in device evaluates: rounds its constants and takes large weights out of it.

With `-convert-to-fp16` every float32 constant (initializers and tensors in attributes) is rounded to FP16 and kept as float32;
values beyond the FP16 range become infinite (row C16). With `-mxfp6-matmul` constant right-hand sides of matrix products are
rounded to MXFP6 first. bfloat16 is widened to float32 without changing values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..block_formats import FloatArray, round_to_float16, round_to_mxfp6
from ..qpc_file import PROGRAM_FILE
from .graph_walk import subgraphs
from .model_file import ModelFile
from .weights import matmul_weight_axes

_EXTERNAL_FROM_BYTES = 1024
_ALIGNMENT = 64
_TYPE_ATTRIBUTES = ("to", "dtype")


@dataclass(frozen=True, kw_only=True)
class ReferenceGraph:
    """Graph bytes and the table of the constants that were written to the constants file."""

    graph: bytes
    constants_table: bytes


def write_reference_graph(
    source: ModelFile, constants_file: Path, *, to_float16: bool, mxfp6_matmul: bool
) -> ReferenceGraph:
    """Write the large constants to `constants_file`, one at a time, and return the rest.

    External data entries of the returned graph name the QPC file and an offset relative to the constants segment.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    axes = matmul_weight_axes(model) if mxfp6_matmul else {}
    table = []
    with constants_file.open("wb") as handle:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor, base_dir=str(source.folder))
            values = _device_values(values, to_float16=to_float16, mxfp6_axis=axes.get(tensor.name))
            if values.nbytes < _EXTERNAL_FROM_BYTES:
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                continue
            offset = _append(handle, values)
            table.append({"name": tensor.name, "offset": offset, "size": values.nbytes})
            _make_external(tensor, values, offset)
    _round_inner_constants(model, to_float16=to_float16)
    _widen_declared_bfloat16(model)
    # Where the model was exported from must not change the output bytes.
    model.graph.doc_string = model.doc_string = ""
    return ReferenceGraph(
        graph=model.SerializeToString(deterministic=True),
        constants_table=json.dumps(table, sort_keys=True).encode(),
    )


def _device_values(values: np.ndarray, *, to_float16: bool, mxfp6_axis: int | None) -> np.ndarray:
    if values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    if values.dtype == np.float16 and mxfp6_axis is not None:
        return _matmul_weight(values.astype(np.float32), mxfp6_axis).astype(np.float16)
    if values.dtype != np.float32:
        return values
    if mxfp6_axis is not None:
        values = _matmul_weight(values, mxfp6_axis)
    return round_to_float16(values) if to_float16 else values


def _matmul_weight(values: FloatArray, axis: int) -> FloatArray:
    return round_to_mxfp6(values, axis)


def _append(handle: IO[bytes], values: np.ndarray) -> int:
    handle.write(b"\0" * (-handle.tell() % _ALIGNMENT))
    offset = handle.tell()
    handle.write(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).data)
    return offset


def _make_external(tensor: TensorProto, values: np.ndarray, offset: int) -> None:
    name = tensor.name
    tensor.Clear()
    tensor.name = name
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor.dims.extend(values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", PROGRAM_FILE), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def _round_inner_constants(model: onnx.ModelProto, *, to_float16: bool) -> None:
    for tensor in _inner_tensors(model):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.BFLOAT16):
            values = _device_values(numpy_helper.to_array(tensor), to_float16=to_float16, mxfp6_axis=None)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if to_float16:
        for node in _nodes(model):
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value_float":
                    attribute.f = float(round_to_float16(np.array([attribute.f], np.float32))[0])
                if node.op_type == "Constant" and attribute.name == "value_floats":
                    attribute.floats[:] = round_to_float16(np.array(attribute.floats, np.float32)).tolist()


def _widen_declared_bfloat16(model: onnx.ModelProto) -> None:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    values += [value for function in model.functions for value in function.value_info]
    for node in _nodes(model):
        for graph in subgraphs(node):
            values += [*graph.value_info, *graph.input, *graph.output]
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    for value in values:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for graph in subgraphs(node):
            pending.extend(graph.node)


def _inner_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Tensors in attributes and the initializers of subgraphs."""
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
        for graph in subgraphs(node):
            yield from graph.initializer
