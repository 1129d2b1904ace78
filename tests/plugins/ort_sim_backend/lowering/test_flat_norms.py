"""Norms of heads that lie side by side."""

from __future__ import annotations

import numpy as np

from ort_sim_backend.lowering import FlatNorms
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

GRAPH = """
norms (float[B, S, 12] x, float[4] weight, float[3] other) => (float[B, S, 12] flat, float[B, S, 2, 6] cut)
<int64[4] heads = {0, 0, 3, 4}, int64[4] quarters = {0, 0, 4, 3}, int64[3] whole = {0, 0, -1}, int64[4] halves = {0, 0, 2, 6},
 float[B, S, 3, 4] split, float[B, S, 3, 4] normed, float[B, S, 12] joined, float[B, S, 4, 3] thirds, float[B, S, 4, 3] unit>
{
    split = Reshape (x, heads)
    normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.001> (split, weight)
    joined = Reshape (normed, whole)
    flat = Neg (joined)
    thirds = Reshape (x, quarters)
    unit = SimplifiedLayerNormalization <axis = -1, epsilon = 0.001> (thirds, other)
    cut = Reshape (unit, halves)
}
"""


def test_a_norm_between_reshapes_takes_heads_side_by_side_and_another_shape_stays():
    model = parse(GRAPH)
    changed = lowered(model, (FlatNorms(), RemoveUnused()))
    assert sorted(op_types(changed)) == [
        "BranchwiseRMSNorm",
        "Neg",
        "Reshape",
        "Reshape",
        "SimplifiedLayerNormalization",
    ]
    random = np.random.default_rng(0)
    shapes = {"x": (2, 5, 12), "weight": (4,), "other": (3,)}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected, found = run(session(model), feeds), run(session(changed), feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
