"""Rotations of queries and keys as one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import GroupQueryAttention, RotaryEmbedding, SimplifiedRMSNorm
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

ROTATION = """
    (int64[B, S] position_ids, float[B, 4, S, 8] x) => (float[B, 4, S, 8] y)
    <float[4] frequencies = {1.0, 0.3, 0.1, 0.03}, int64[1] first = {0}, int64[1] middle = {4}, int64[1] end = {9223372036854775807},
     int64[1] last_axis = {3}, int64[1] token_axis = {2}, int64[1] head_axis = {1}, float scaling = {1.3},
     float[B, S, 8] angles, float[B, S, 8] cosines, float[B, S, 8] sines, float[B, S, 8] scaled_cosines, float[B, S, 8] scaled_sines,
     float[B, 1, S, 8] cosines_of_heads, float[B, 1, S, 8] sines_of_heads>
    {
        numbers = Cast <to = 1> (position_ids)
        column = Unsqueeze (numbers, token_axis)
        half = Mul (column, frequencies)
        slower_half = Mul (half, scaling)
        angles = Concat <axis = -1> (half, OTHER)
        cosines = Cos (angles)
        sines = Sin (angles)
        scaled_cosines = Mul (cosines, scaling)
        scaled_sines = Mul (scaling, sines)
        cosines_of_heads = Unsqueeze (scaled_cosines, head_axis)
        sines_of_heads = Unsqueeze (scaled_sines, head_axis)
        front = Slice (x, first, CUT, last_axis)
        back = Slice (x, CUT, end, last_axis)
        negated = Neg (back)
        turned = Concat <axis = -1> (negated, front)
        plain = Mul (cosines_of_heads, x)
        rotated = Mul (turned, sines_of_heads)
        y = Add (rotated, plain)
    }
"""


def rotation(*, other_half: str = "half", cut: str = "middle"):
    return parse("rotation " + ROTATION.replace("OTHER", other_half).replace("CUT", cut))


def test_numbers_stay_the_same_for_rows_at_different_positions():
    model = rotation()
    changed = lowered(model, (RotaryEmbedding(), RemoveUnused()))
    assert op_types(changed).count("RotaryEmbedding") == 1
    assert not {"Neg", "Add"} & set(op_types(changed))
    random = np.random.default_rng(0)
    feeds = {
        "position_ids": np.array([[0, 1, 2], [900, 901, -1]]),
        "x": random.standard_normal((2, 4, 3, 8)).astype(np.float32),
    }

    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [rotation(other_half="slower_half"), rotation(cut="first")],
    ids=["halves with different angles", "other parts"],
)
def test_what_is_no_such_rotation_is_left(model):
    before = op_types(model)

    assert not RotaryEmbedding()(model)

    assert op_types(model) == before


def test_queries_reach_the_attention_without_a_transpose():
    """Normed and rotated heads, as in models with norms of queries and keys: the kernels take the order that products give."""
    head = """
    {name}_by_token = Reshape (flat_{name}, {name}_shape)
    {name}_by_head = Transpose <perm = [0, 2, 1, 3]> ({name}_by_token)
    {name}_normed = qeff.RMSNorm <epsilon: float = 0.001> ({name}_by_head, weight)
    {name}_front = Slice ({name}_normed, first, middle, last_axis)
    {name}_back = Slice ({name}_normed, middle, end, last_axis)
    {name}_negated = Neg ({name}_back)
    {name}_turned = Concat <axis = -1> ({name}_negated, {name}_front)
    {name}_plain = Mul ({name}_normed, cosines_of_heads)
    {name}_rotated = Mul ({name}_turned, sines_of_heads)
    {name} = Add ({name}_plain, {name}_rotated)
    """
    model = parse(
        """layer (int64[B, S] position_ids, float[B, S, 32] flat_query, float[B, S, 16] flat_key, float[B, 2, S, 8] value,
                  float[B, 2, C, 8] past_key, float[B, 2, C, 8] past_value)
           => (float[B, 4, S, 8] attended, float[B, 2, C, 8] past_key_RetainedState, float[B, 2, C, 8] past_value_RetainedState)
           <float[4] frequencies = {1.0, 0.3, 0.1, 0.03}, int64[1] first = {0}, int64[1] middle = {4},
            int64[1] end = {9223372036854775807}, int64[1] last_axis = {3}, int64[1] token_axis = {2}, int64[1] head_axis = {1},
            int64[4] query_shape = {0, 0, 4, 8}, int64[4] key_shape = {0, 0, 2, 8}, int64 zero = {0}, int64 one = {1},
            float[8] weight = {1., 2., 3., 1., 2., 3., 1., 2.},
            float[B, S, 8] angles, float[B, S, 8] cosines, float[B, S, 8] sines,
            float[B, 1, S, 8] cosines_of_heads, float[B, 1, S, 8] sines_of_heads,
            float[B, 4, S, 8] query_by_head, float[B, 4, S, 8] query_normed, float[B, 4, S, 8] query,
            float[B, 2, S, 8] key_by_head, float[B, 2, S, 8] key_normed, float[B, 2, S, 8] key>
           {
             numbers = Cast <to = 1> (position_ids)
             column = Unsqueeze (numbers, token_axis)
             half = Mul (column, frequencies)
             angles = Concat <axis = -1> (half, half)
             cosines = Cos (angles)
             sines = Sin (angles)
             cosines_of_heads = Unsqueeze (cosines, head_axis)
             sines_of_heads = Unsqueeze (sines, head_axis)
        """
        + head.format(name="query")
        + head.format(name="key")
        + """
             past_key_RetainedState = qeff.KVUpdate (past_key, key, position_ids)
             past_value_RetainedState = qeff.KVUpdate (past_value, value, position_ids)
             size = Shape <start = 2, end = 3> (past_key)
             limit = Squeeze (size)
             slots = Range (zero, limit, one)
             mask = qeff.CausalMask <window = 0, chunk = 0> (position_ids, slots)
             attended = qeff.Attention <scale: float = 0.4, softcap: float = 0.0> (query, past_key_RetainedState, past_value_RetainedState, mask)
           }"""
    )
    passes = (RotaryEmbedding(), GroupQueryAttention(), SimplifiedRMSNorm(), RemoveUnused())
    changed = lowered(model, passes)
    ops = op_types(changed)
    assert ops.count("RotaryEmbedding") == 2
    assert ops.count("Transpose") == 2  # of the values, which are given by head, and of the result
    random = np.random.default_rng(1)
    shapes = {"flat_query": (2, 3, 32), "flat_key": (2, 3, 16), "value": (2, 2, 3, 8)}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds |= {name: np.zeros((2, 2, 9, 8), np.float32) for name in ("past_key", "past_value")}
    feeds["position_ids"] = np.array([[0, 1, 2], [0, 1, -1]])

    expected, found = run(session(model), feeds), run(session(changed), feeds)

    np.testing.assert_allclose(found["attended"][0], expected["attended"][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["attended"][1, :, :2], expected["attended"][1, :, :2], rtol=1e-5, atol=1e-5)
