"""Evaluates a program's reference graph in ONNX Runtime.

What is rounded in a program compiled with `-convert-to-fp16`:

- every float32 constant, at compile time (see `compiler.reference_graph`);
- float inputs, retained state, and outputs (see `io_codec`), on every run.

What is not rounded: values inside the graph, which stay float32, so intermediate overflow and accumulated rounding do not
show. With `QAIC_STANDIN_ROUNDING=every_node` each float32 result of each node of the inlined main graph is rounded to FP16
too (bodies of If, Loop and Scan are not); that is slower and closer to the device. Neither mode predicts device numerics
bit by bit: order of summation and kernel approximations are the hardware's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnxruntime as ort
from numpy.typing import NDArray

from ..faults import NEGATIVE_SCATTER_VARIABLE, ROUNDING_VARIABLE
from ..program_description import ProgramDescription
from ..qpc_file import CONSTANTS, NETWORK, QpcFile
from .device_operators import use_device_semantics

_ROUNDINGS = ("io", "every_node")
_NEGATIVE_SCATTERS = ("wrap", "drop")
Array = NDArray[np.generic]


class Executor:
    """A loaded program. One session serves every entry: its dims stay symbolic."""

    def __init__(self, qpc: QpcFile, program: ProgramDescription) -> None:
        model = onnx.load_model_from_string(qpc.read(NETWORK))
        _place_constants(model, qpc.segments[CONSTANTS].offset)
        drops = _setting(NEGATIVE_SCATTER_VARIABLE, _NEGATIVE_SCATTERS) == "drop"
        use_device_semantics(model, drop_negative_scatter=drops)
        model = onnx.inliner.inline_local_functions(model, convert_version=True)
        if program.convert_to_fp16 and _setting(ROUNDING_VARIABLE, _ROUNDINGS) == "every_node":
            round_every_node(model)
        options = ort.SessionOptions()
        # One thread: results do not depend on how a sum is split. Errors are raised anyway, so no log lines.
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(qpc.path.parent))
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Values of `outputs` in the graph's types."""
        results = self._session.run(list(outputs), dict(inputs))
        return dict(zip(outputs, map(np.asarray, results), strict=True))


def round_every_node(model: onnx.ModelProto) -> None:
    """Insert a cast to FP16 and back behind every node of the main graph that yields float32, in place."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *model.graph.output)
    }
    nodes = []
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for position, name in enumerate(node.output):
            if types.get(name) != onnx.TensorProto.FLOAT:
                continue
            copy.output[position] = f"{name}/exact"
            nodes.append(
                onnx.helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=onnx.TensorProto.FLOAT16)
            )
            nodes.append(onnx.helper.make_node("Cast", [f"{name}/half"], [name], to=onnx.TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _place_constants(model: onnx.ModelProto, base: int) -> None:
    """Turn offsets in the constants segment into offsets in the QPC file, which ONNX Runtime maps in place."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + base)


def _setting(variable: str, allowed: Sequence[str]) -> str:
    value = os.environ.get(variable, allowed[0])
    if value not in allowed:
        raise ValueError(f"{variable} must be one of {', '.join(allowed)}, got '{value}'")
    return value
