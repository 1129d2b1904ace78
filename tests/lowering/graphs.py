"""Small graphs of dialect ops written by hand, and the two ways to run them: as they are, and lowered over one cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx.parser
import onnx_ir
import onnxruntime as ort
from numpy.typing import NDArray

from qeff_framework.dialect.functions import attach_functions

Arrays = dict[str, NDArray[np.generic]]

QUERY_HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 8
STATES = {"past_key": "past_key_RetainedState", "past_value": "past_value_RetainedState"}

_INTERFACE = """
    (int64[batch_size, seq_len] position_ids,
     float[batch_size, QUERY_HEADS, seq_len, HEAD_DIM] query,
     float[batch_size, KEY_HEADS, seq_len, HEAD_DIM] key,
     float[batch_size, KEY_HEADS, seq_len, HEAD_DIM] value,
     float[batch_size, KEY_HEADS, ctx_len, HEAD_DIM] past_key,
     float[batch_size, KEY_HEADS, ctx_len, HEAD_DIM] past_value)
    => (float[batch_size, QUERY_HEADS, seq_len, HEAD_DIM] attended,
        float[batch_size, KEY_HEADS, ctx_len, HEAD_DIM] past_key_RetainedState,
        float[batch_size, KEY_HEADS, ctx_len, HEAD_DIM] past_value_RetainedState)
    <int64 zero = {0}, int64 one = {1}>
"""


def attention_layer(
    *,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    scale: float = 0.4,
    sinks: bool = False,
    head_dim: int = HEAD_DIM,
) -> onnx_ir.Model:
    """One attention layer with its cache; with `sinks` its heads have some."""
    sizes = {"QUERY_HEADS": QUERY_HEADS, "KEY_HEADS": KEY_HEADS, "HEAD_DIM": head_dim}
    interface = _INTERFACE
    for name, size in sizes.items():
        interface = interface.replace(name, str(size))
    inputs = "query, past_key_RetainedState, past_value_RetainedState, mask"
    op_type, more = ("AttentionSinks", ", sinks") if sinks else ("Attention", "")
    return parse(
        f"layer {interface} {{"
        "past_key_RetainedState = qeff.KVUpdate (past_key, key, position_ids)"
        "past_value_RetainedState = qeff.KVUpdate (past_value, value, position_ids)"
        "size = Shape <start = 2, end = 3> (past_key)"
        "limit = Squeeze (size)"
        "slots = Range (zero, limit, one)"
        "sinks = Constant <value_floats = [-1.0, 0.0, 0.5, 2.0]> ()"
        f"mask = qeff.CausalMask <window = {window}, chunk = {chunk}> (position_ids, slots)"
        f"attended = qeff.{op_type} <scale: float = {scale}, softcap: float = {softcap}> ({inputs}{more})"
        "}"
    )


def parse(graph: str) -> onnx_ir.Model:
    """A model with the bodies of the dialect ops that it uses."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "qeff": 1]> {graph}')
    model = onnx_ir.serde.deserialize_model(proto)
    attach_functions(model)
    return model


def with_constants(model: onnx_ir.Model, first: int = 1) -> onnx_ir.Model:
    """Random constants in place of the inputs from number `first` on."""
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[first:]:
        model.graph.inputs.remove(value)
        content = random.standard_normal(tuple(value.shape.numpy())).astype(np.float32)
        value.const_value = onnx_ir.tensor(content, name=value.name)
        model.graph.register_initializer(value)
    return model


def lowered(model: onnx_ir.Model, passes: Iterable[object]) -> onnx_ir.Model:
    """A copy of `model` after `passes`."""
    copy = onnx_ir.serde.deserialize_model(onnx_ir.serde.serialize_model(model))
    for lowering in passes:
        lowering(copy)
    return copy


def op_types(model: onnx_ir.Model) -> list[str]:
    """Op types of the main graph, in order."""
    return [node.op_type for node in model.graph]


def session(model: onnx_ir.Model) -> ort.InferenceSession:
    """An ONNX Runtime session of one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    proto = onnx_ir.serde.serialize_model(model)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ort.InferenceSession, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """One step with buffers of its own for every output."""
    names = [output.name for output in model.get_outputs()]
    return dict(zip(names, model.run(None, dict(feeds)), strict=True))


def run_in_place(model: ort.InferenceSession, feeds: Mapping[str, NDArray[np.generic]], states: Arrays) -> Arrays:
    """One step that overwrites `states`; returns the other outputs."""
    binding = model.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for name, buffer in states.items():
        binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        binding.bind_output(STATES[name], "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
    others = [output.name for output in model.get_outputs() if output.name not in STATES.values()]
    for name in others:
        binding.bind_output(name)
    model.run_with_iobinding(binding)
    by_name = dict(zip([*(STATES[name] for name in states), *others], binding.get_outputs(), strict=True))
    return {name: by_name[name].numpy().copy() for name in others}
