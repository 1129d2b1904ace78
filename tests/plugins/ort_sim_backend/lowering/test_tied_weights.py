"""A weight that is read both as it is and transposed is kept once."""

from __future__ import annotations

import numpy as np

from ort_sim_backend.lowering import TiedWeights
from tests.lowering.graphs import lowered, op_types, parse, run, session

GRAPH = """
model (int64[B, S] ids) => (float[B, S, 4] scores)
<float[4, 3] embedding = {1., 2., 3., 4., 5., 6., 7., 8., 9., -1., -2., -3.},
 float[4, 3] other = {0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 1., 2.}>
{
    hidden = Gather <axis = 0> (embedding, ids)
    transposed = Transpose <perm = [1, 0]> (WEIGHT)
    scores = MatMul (hidden, transposed)
}
"""


def test_numbers_stay_and_the_transpose_goes():
    model = parse(GRAPH.replace("WEIGHT", "embedding"))
    changed = lowered(model, (TiedWeights(),))
    assert op_types(changed) == ["Gather", "Transpose", "FusedMatMul"]
    assert not changed.graph[1].outputs[0].uses()
    feeds = {"ids": np.array([[0, 3, 1]])}

    np.testing.assert_array_equal(run(session(changed), feeds)["scores"], run(session(model), feeds)["scores"])


def test_a_weight_with_one_reader_is_left_to_constant_folding():
    assert not TiedWeights()(parse(GRAPH.replace("WEIGHT", "other")))
