"""Reshapes that undo each other, also around transposes that do."""

from __future__ import annotations

import numpy as np

from ort_sim_backend.lowering import MergedReshapes
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

GRAPH = """
reshapes (float[B, S, 8] x) => (float[B, S, 8] merged, float[B, S, 4] halves, float[B, S, 8] kept, float[B, S, 8] turned, float[B, S, 8] mixed)
<int64[4] heads = {0, 0, 2, 4}, int64[3] whole = {0, 0, -1}, int64[4] others = {0, -1, 2, 2}, int64[3] back = {0, -1, 4},
 int64[1] end = {2}, int64[1] axis = {1}, float[B, S, 8] same, float[B, T, 4] joined, float[B, S, 8] again, float[B, S, 8] moved>
{
    cut = Reshape (x, heads)
    same = Reshape (cut, whole)
    merged = Neg (same)
    parts = Reshape (cut, others)
    joined = Reshape (parts, back)
    start = Shape <start = 1, end = 2> (x)
    zero = Sub (end, end)
    halves = Slice (joined, zero, start, axis)
    kept = Reshape (cut, whole)
    first = Transpose <perm = [0, 3, 1, 2]> (cut)
    back_again = Transpose <perm = [0, 2, 3, 1]> (first)
    again = Reshape (back_again, whole)
    turned = Neg (again)
    heads_swapped = Transpose <perm = [0, 1, 3, 2]> (cut)
    other_way = Transpose <perm = [0, 1, 2, 3]> (heads_swapped)
    moved = Reshape (other_way, whole)
    mixed = Neg (moved)
}
"""


def test_what_has_the_first_shape_again_is_left_out_and_all_else_stays():
    model = parse(GRAPH)
    changed = lowered(model, (MergedReshapes(), RemoveUnused()))

    # Two make another shape, a graph's output keeps its own and the one before, and so do numbers in another order.
    assert op_types(changed).count("Reshape") == op_types(model).count("Reshape") - 2
    assert op_types(changed).count("Transpose") == 2
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)}
    expected, found = run(session(model), feeds), run(session(changed), feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
