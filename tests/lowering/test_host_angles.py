"""Sines that are taken out of a graph are those that the graph computed, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime as ort
import pytest

from qeff_framework.errors import ExecutionError
from qeff_framework.lowering import take_out_angles
from qeff_framework.sessions import HostGraph

DENOISER = """<ir_version: 10, opset_import: ["": 18]>
denoiser (int64[2] timestep, float[2, 4] scales, float[6, 3] ids, float[2, 3] more, float[2, 3, 8, 8] picture, float[N] free)
    => (float[2, 16] y, float[2, 3, 8, 8] z, float[8, 2] rotated, float[2, 16] kept, float[N] f)
    <int64[1] axis = {1}, int64[1] front = {0}, int64[2] repeats = {1, 4}, int64 column = {1}, double[1, 2] rates = {1.0, 0.1}> {
    times = Cast <to = 1> (timestep) rows = Unsqueeze (times, axis) angles = Mul (rows, frequencies)
    sines = Sin (angles) cosines = Cos (angles) both = Concat <axis = 1> (sines, cosines) projected = MatMul (both, layer)
    scaled = Cos (scales) rest = Tile (scaled, repeats) y = Add (projected, rest)
    z = Sin (picture) f = Cos (free)
    places = Concat <axis = 0> (more, ids) chosen = Gather <axis = 1> (places, column) wide = Cast <to = 11> (chosen)
    wide_rows = Unsqueeze (wide, axis) positions = Mul (wide_rows, rates) table = Cos (positions) rotary = Cast <to = 1> (table)
    rotated = MatMul (rotary, square) kept = Mul (both, both)
}"""


def run(model: onnx_ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in feeds.items() if name in names})


def test_the_host_computes_what_small_inputs_decide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "frequencies": np.exp(-np.arange(8, dtype=np.float32)),
        "layer": rng.normal(size=(16, 16)).astype(np.float32),
        "square": np.eye(2, dtype=np.float32),
    }
    proto = onnx.parser.parse_model(DENOISER)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    model = onnx_ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    sizes = {"scales": (2, 4), "ids": (6, 3), "more": (2, 3), "picture": (2, 3, 8, 8), "free": (5,)}
    feeds = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    feeds["timestep"] = np.array([888, 3])
    expected = run(model, feeds)

    taken = take_out_angles([model])

    # One input for sine and cosine side by side, and float32 ones alone.
    assert [one.reads for one in taken] == [("timestep",), ("scales",), ("ids", "more")]
    names = [str(value.name) for value in model.graph.inputs]
    # What a picture holds, and what has no fixed size, stays the device's work.
    assert names == ["picture", "free", *(one.input for one in taken)]
    assert {node.op_type for node in model.graph} == {"Sin", "Cos", "MatMul", "Mul", "Add"}
    for one in taken:
        path = tmp_path / "angles.onnx"
        onnx_ir.save(one.model, path)
        graph = HostGraph(path)
        assert set(graph.reads) == set(one.reads)
        feeds[one.input] = graph(feeds)
        assert graph(feeds) is feeds[one.input]
        changed = {name: feeds[name] + 1 for name in graph.reads}
        assert not np.array_equal(graph(changed), feeds[one.input])
    for found, wanted in zip(run(model, feeds), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "angles_0.onnx").write_bytes(b"damaged")
    with pytest.raises(ExecutionError, match="angles_0.onnx cannot be read.*Compile the model again"):
        HostGraph(tmp_path / "angles_0.onnx")
