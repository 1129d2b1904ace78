"""Small graphs in the HTP simulator and on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime as ort
import pytest

from qnn_backend.htp import provider
from qnn_backend.htp.lowering.opset import OPSET

SOC_ID = 57
Arrays = Mapping[str, np.ndarray[Any, Any]]

needs_simulator = pytest.mark.skipif(
    provider.version_of("onnxruntime-qnn") == "none" or not provider.has_simulator(),
    reason="needs the x86-64 wheel of onnxruntime-qnn",
)


def parse(graph: str, weights: Mapping[str, np.ndarray[Any, Any]] | None = None, opset: int = OPSET) -> onnx_ir.Model:
    """A static graph from ONNX text; `weights` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {graph}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items())
    return onnx_ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def lowered(model: onnx_ir.Model, *passes: Any) -> onnx_ir.Model:
    """A copy of `model` after `passes`, each of which must have changed it."""
    copy = onnx_ir.serde.deserialize_model(onnx_ir.serde.serialize_model(model))
    for one in passes:
        assert one(copy), f"{one.name} found nothing"
    return copy


def on_cpu(model: onnx_ir.Model, feeds: Arrays) -> list[np.ndarray[Any, Any]]:
    """The outputs in float32."""
    session = ort.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def simulate(model: onnx_ir.Model, feeds: Arrays, folder: Path) -> list[np.ndarray[Any, Any]]:
    """The outputs of the simulator; nothing may stay on the CPU."""
    path = folder / "graph.onnx"
    onnx_ir.save(model, path)
    session = ort.InferenceSession(str(path), provider.session_options(SOC_ID, {}, {}), enable_fallback=0)
    return session.run(None, dict(feeds))


def cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    left, right = left.ravel().astype(np.float64), right.ravel().astype(np.float64)
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def worst(expected: Iterable[np.ndarray[Any, Any]], actual: Iterable[np.ndarray[Any, Any]]) -> float:
    """The largest error, as a part of the largest number."""
    return max(
        float(np.abs(left.astype(np.float64) - right).max() / np.abs(left).max())
        for left, right in zip(expected, actual, strict=True)
    )
