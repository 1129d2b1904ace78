"""Sines that are taken out of a graph are those that the graph computed, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir

from qnn_backend.htp.host_tables import HostTables
from qnn_backend.htp.lowering.host_angles import take_out_angles
from tests.plugins.qnn_backend.htp.simulator import on_cpu, parse

DENOISER = """denoiser (int64[2] timestep, float[2, 4] scales, float[2, 3, 8, 8] picture) => (float[2, 16] y, float[2, 3, 8, 8] z) {
    times = Cast <to = 1> (timestep) axis = Constant <value_ints = [1]> () column = Unsqueeze (times, axis)
    angles = Mul (column, frequencies) sines = Sin (angles) cosines = Cos (angles)
    both = Concat <axis = 1> (sines, cosines) scaled = Cos (scales) rest = Tile (scaled, repeats) y = Add (both, rest)
    z = Sin (picture)
}"""


def test_the_host_computes_what_a_small_input_decides(tmp_path: Path) -> None:
    frequencies = np.exp(-np.arange(8, dtype=np.float32))
    model = parse(DENOISER, {"frequencies": frequencies, "repeats": np.array([1, 4])})
    rng = np.random.default_rng(0)
    feeds = {
        "timestep": np.array([888, 3]),
        "scales": rng.normal(size=(2, 4)).astype(np.float32),
        "picture": rng.normal(size=(2, 3, 8, 8)).astype(np.float32),
    }
    expected = on_cpu(model, feeds)
    taken = take_out_angles([model])
    assert [one.ids for one in taken] == ["timestep", "timestep", "scales"]
    # The contents of a picture stay the device's work.
    assert sum(node.op_type in ("Sin", "Cos") for node in model.graph) == 1
    names = [str(value.name) for value in model.graph.inputs]
    assert names == ["picture", *(one.input for one in taken)]
    records = [{"input": one.input, "ids": one.ids, "file": f"{one.input}.onnx"} for one in taken]
    for one in taken:
        onnx_ir.save(one.model, tmp_path / f"{one.input}.onnx")
    tables = HostTables(tmp_path, records)
    given = tables.feeds_of(names, feeds)
    np.testing.assert_allclose(given[taken[0].input], np.sin(np.outer(feeds["timestep"], frequencies)), atol=1e-4)
    for found, wanted in zip(on_cpu(model, given), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    buffers = {one.input: np.zeros_like(given[one.input]) for one in taken}
    tables.lookup_into(buffers, feeds)
    assert all(np.array_equal(buffers[name], given[name]) for name in buffers)
