"""Tables that are looked up, in blocks of few bits."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import passes
from tests.lowering.graphs import lowered, op_types, parse, run, session, with_constants


@pytest.mark.parametrize(("precision", "error"), [("w8", 0.01), ("w4", 0.15)])
def test_a_table_shares_the_blocks_of_the_output_layer(precision, error):
    tied = parse(
        """tied (int64[B, S] ids, float[16384, 64] table) => (float[B, S, 64] rows, float[B, S, 16384] logits)
           { rows = Gather <axis = 0> (table, ids) turned = Transpose <perm = [1, 0]> (table) logits = MatMul (rows, turned) }"""
    )
    model = with_constants(tied)

    changed = lowered(model, passes(precision))

    assert sorted(name for name in changed.graph.initializers if "table" in name) == [
        "table_transposed_blocks",
        "table_transposed_blocks_scales",
    ]
    assert op_types(changed).count("MatMulNBits") == 1
    feeds = {"ids": np.array([[0, 16383, 5], [7, 7, 16000]])}
    expected, found = run(session(model), feeds)["rows"], run(session(changed), feeds)["rows"]
    assert found.shape == expected.shape
    assert 0 < np.sqrt(np.square(found - expected).mean()) < error


def test_small_tables_stay():
    positions = parse(
        "small (int64[B, S] ids, float[512, 64] table) => (float[B, S, 64] rows) { rows = Gather (table, ids) }"
    )

    assert op_types(lowered(with_constants(positions), passes("w4"))) == ["Gather"]
