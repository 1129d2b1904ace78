"""A table that is taken out of a graph leaves the same function of its rows."""

from __future__ import annotations

import numpy as np
import onnx_ir

from qnn_backend.htp.lowering.host_embeddings import take_out_embeddings
from tests.plugins.qnn_backend.htp.simulator import on_cpu, parse

RNG = np.random.default_rng(0)
TIED = """tied (int64[1, 3] ids, int64[1, 3] places) => (float[1, 3, 16] y) {
    words = Gather (table, ids) near = Gather (small, places) sum = Add (words, near)
    head = Transpose <perm = [1, 0]> (table) y = MatMul (sum, head)
}"""


def test_a_tied_table_stays_for_its_other_reader() -> None:
    table, small = RNG.normal(size=(16, 8)).astype(np.float32), RNG.normal(size=(4, 8)).astype(np.float32)
    model = parse(TIED, {"table": table, "small": small})
    feeds = {"ids": np.array([[3, 0, 15]]), "places": np.array([[0, 1, 3]])}
    expected = on_cpu(model, feeds)
    [taken] = take_out_embeddings([model], least_bytes=table.nbytes)
    np.testing.assert_array_equal(taken.table.numpy(), table)
    assert [value.name for value in model.graph.inputs] == ["places", taken.input]
    rows = {taken.input: table[feeds["ids"]], "places": feeds["places"]}
    np.testing.assert_array_equal(on_cpu(model, rows)[0], expected[0])


def test_two_graphs_with_one_table_take_it_from_one_input() -> None:
    table = RNG.normal(size=(16, 8)).astype(np.float32)
    text = "g (int64[1, {n}] ids) => (float[1, {n}, 8] y) {{ words = Gather (table, ids) y = Tanh (words) }}"
    models = [parse(text.format(n=count), {"table": table}) for count in (1, 5)]
    shared = next(iter(models[0].graph.initializers.values())).const_value
    next(iter(models[1].graph.initializers.values())).const_value = shared
    [taken] = take_out_embeddings(models, least_bytes=0)
    for model, count in zip(models, (1, 5), strict=True):
        [rows] = model.graph.inputs
        assert (rows.name, list(rows.shape or ())) == (taken.input, [1, count, 8])
        assert not model.graph.initializers
        assert onnx_ir.to_proto(model)
