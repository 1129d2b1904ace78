"""Rotations of pairs that stand side by side as one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import InterleavedRotary
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

ROTATION = """
    rotation (float[ROWS, 3] positions, float[2, STATES, 8] x) => (float[2, STATES, 8] y)
    <float[4] frequencies = {1.0, 0.3, 0.1, 0.03}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-1},
     int64[1] heads = {HEADS}, int64[4] repeats = {1, 1, 1, 2}, int64[3] whole = {ROWS, 3, 8}, int64[5] pairs = {2, STATES, 4, 2},
     int64[4] shape = {2, STATES, 8},
     float[ROWS, 3, 1] column, float[ROWS, 3, 4] angles, float[ROWS, 3, 4] cos, float[ROWS, 3, 4] sin, float[ROWS, 3, 4, 1] each_cos,
     float[ROWS, 3, 4, 1] each_sin, float[ROWS, 3, 4, 2] two_cos, float[ROWS, 3, 4, 2] two_sin, float[ROWS, 3, 8] all_cos,
     float[ROWS, 3, 8] all_sin, float[TABLE, 8] cosines, float[TABLE, 8] sines, float[2, STATES, 4, 2] paired,
     float[2, STATES, 8] turned>
    {
        column = Unsqueeze (positions, last)
        angles = Mul (column, frequencies)
        cos = Cos (angles)
        sin = Sin (angles)
        each_cos = Unsqueeze (cos, last)
        each_sin = Unsqueeze (sin, last)
        two_cos = Expand (each_cos, repeats)
        two_sin = Expand (each_sin, repeats)
        all_cos = Reshape (two_cos, whole)
        all_sin = Reshape (two_sin, whole)
        cosines = Unsqueeze (all_cos, heads)
        sines = Unsqueeze (all_sin, heads)
        paired = Reshape (x, pairs)
        even_column = Slice (paired, zero, one, last)
        odd_column = Slice (paired, one, two, last)
        even = Squeeze (even_column, last)
        odd = Squeeze (odd_column, last)
        negated = Neg (NEGATED)
        first = Unsqueeze (negated, last)
        second = Unsqueeze (OTHER, last)
        turned_pairs = Concat <axis = -1> (first, second)
        turned = Reshape (turned_pairs, shape)
        plain = Mul (x, cosines)
        rotated = Mul (turned, sines)
        y = Add (plain, rotated)
    }
"""


def rotation(*, rows: int = 1, token_axis: int = 1, negated: str = "odd"):
    names = {
        "ROWS": str(rows),
        "STATES": "3, 4" if token_axis == 1 else "4, 3",
        "TABLE": f"{rows}, 3, 1" if token_axis == 1 else f"{rows}, 1, 3",
        "HEADS": str(3 - token_axis),
        "NEGATED": negated,
        "OTHER": "even" if negated == "odd" else "odd",
    }
    text = ROTATION
    for name, value in names.items():
        text = text.replace(name, value)
    return parse(text)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("token_axis", [1, 2])
def test_numbers_stay_the_same_in_both_orders_of_axes(token_axis: int, rows: int) -> None:
    model = rotation(rows=rows, token_axis=token_axis)
    changed = lowered(model, (InterleavedRotary(), RemoveUnused()))
    assert op_types(changed).count("RotaryEmbedding") == 1
    assert not {"Neg", "Add", "Concat"} & set(op_types(changed))
    random = np.random.default_rng(0)
    feeds = {
        "positions": random.integers(0, 900, (rows, 3)).astype(np.float32),
        "x": random.standard_normal((2, 3, 4, 8) if token_axis == 1 else (2, 4, 3, 8)).astype(np.float32),
    }

    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_turn_to_the_other_side_is_left() -> None:
    model = rotation(negated="even")
    before = op_types(model)

    assert not InterleavedRotary()(model)

    assert op_types(model) == before
