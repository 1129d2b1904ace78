"""Sines and cosines of positions as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qeff_framework.contracts import Specialization
from qeff_framework.errors import CompileError
from qeff_framework.lowering import Computation, RotaryTables
from tests.lowering.graphs import lowered, op_types, parse, run, session

ROTARY = """rotary (int64[B, S] position_ids) => (float[B, S, 2] cosine, float[B, S, 2] sine)
<float[2] frequencies = {1.0, 0.01}, int64[1] axis = {2}> {
    positions = Cast <to = 1> (position_ids) column = Unsqueeze (positions, axis)
    SCALE angle = Mul (scaled, frequencies) cosine = Cos (angle) sine = Sin (angle)
}"""
ALONE = ROTARY.replace("SCALE", "scaled = Identity (column)")


def test_tables_hold_what_float32_computes() -> None:
    model = parse(ALONE)
    changed = lowered(model, (RotaryTables(5000),))
    assert not {"Cos", "Sin"} & set(op_types(changed))
    assert op_types(changed).count("Max") == 1
    tables = [value for value in changed.graph.initializers.values() if list(value.shape or ()) == [5000, 2]]
    assert len(tables) == 2
    positions = np.array([[0, 4097, 4999], [-1, 17, -1]])
    expected, found = (run(session(one), {"position_ids": np.maximum(positions, 0)}) for one in (model, changed))
    padded = run(session(changed), {"position_ids": positions})
    for name in ("cosine", "sine"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-3)
        np.testing.assert_array_equal(padded[name], found[name])  # padding takes the row of position 0


@pytest.mark.parametrize(
    "scale",
    [
        "most = ReduceMax <keepdims = 1> (column) scaled = Div (column, most)",
        "count = Shape (position_ids) floats = Cast <to = 1> (count) size = ReduceMax (floats) scaled = Div (column, size)",
    ],
    ids=["the longest position", "the number of tokens"],
)
def test_angles_that_depend_on_other_tokens_stay(scale: str) -> None:
    model = parse(ROTARY.replace("SCALE", scale))
    assert not RotaryTables(16)(model)
    assert "Cos" in op_types(model)


#: Angles divided by the length of the text, chosen for texts of more than 8 tokens.
GROWN = """grown (int64[B, S] position_ids, int64[B, L] NAME) => (float[B, S, 2] cosine)
<float[2] frequencies = {1.0, 0.01}, int64[1] axis = {2}, int64[1] one = {1}, int64 limit = {8}> {
    is_token = Identity (NAME) LENGTH
    more = Cast <to = 1> (length) width = Unsqueeze (more, axis) angle = Div (frequencies, width)
    grown = Cos (angle) short = Cos (frequencies)
    is_long = Greater (length, limit) chosen = Unsqueeze (is_long, axis) cosine = Where (chosen, grown, short)
}"""
COUNTED = "length = ReduceSum <keepdims = 1> (is_token, one)"


@pytest.mark.parametrize(
    ("name", "length", "dims", "remedy"),
    [
        ("prompt_lengths", "length = Identity (is_token)", {"ctx_len": 9}, "the text .* ctx_len of at most 8"),
        (
            "encoder_position_ids",
            COUNTED,
            {"ctx_len": 2, "encoder_ctx_len": 9},
            "the source .* encoder_seq_len of at most 8",
        ),
        ("attention_mask", COUNTED, {"seq_len": 9}, "the text .* seq_len of at most 8"),
    ],
)
def test_angles_that_grow_with_the_text_are_refused(name: str, length: str, dims: dict[str, int], remedy: str) -> None:
    """A table would need a row for each pair of position and length; computed in float16, they would be silently wrong."""
    text = GROWN.replace("NAME", name).replace("LENGTH", length)
    with pytest.raises(CompileError, match=rf"grow with the length of {remedy}, .*max_position_embeddings"):
        RotaryTables.of([Specialization(name="a", dims=dims)])(parse(text))
    shorter = {size: min(length, 8) for size, length in dims.items()}
    assert not RotaryTables.of([Specialization(name="a", dims=shorter)])(parse(text))


def test_tokens_that_are_rows_of_their_own_have_a_table() -> None:
    """An encoder-decoder's decoder: every token ends the text that it is read with, so its position tells the length as well."""
    model = parse(
        """by_row (int64[B, S] position_ids) => (float[T, 1, 2] cosine)
        <float[2] frequencies = {1.0, 0.01}, int64[3] column = {-1, 1, 1}, float half = {0.5}> {
            positions = Cast <to = 1> (position_ids) rows = Reshape (positions, column) slower = Mul (rows, half)
            length = Add (slower, half) scaled = Div (rows, length) angle = Mul (scaled, frequencies) cosine = Cos (angle)
        }"""
    )
    changed = lowered(model, (RotaryTables(64),))
    assert "Cos" not in op_types(changed)
    feeds: dict[str, Any] = {"position_ids": np.array([[3, 63, 0], [17, 5, 40]])}
    expected, found = (run(session(one), feeds)["cosine"] for one in (model, changed))
    assert found.shape == (6, 1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_computation_reads_its_inputs_and_constants_only() -> None:
    model = parse(
        """m (int64[N] a, int64[N] b, int64[N] c) => (int64[N] y, int64[N] z, int64[N] k) <int64 two = {2}> {
            doubled = Mul (a, two) y = Add (doubled, b) z = Add (y, c) k = Identity (two)
        }"""
    )
    a, b, c = model.graph.inputs
    y, z, k = model.graph.outputs
    found = Computation.of(y, [a, b, c])
    assert found is not None
    assert (found.inputs, len(found.nodes)) == ((a, b), 2)
    np.testing.assert_array_equal(found({"a": np.array([1, 2]), "b": np.array([10, 20])}), [12, 24])
    assert Computation.of(z, [a, b]) is None
    assert Computation.of(k, [a]) is None
    itself = Computation.of(a, [a])
    assert itself is not None
    np.testing.assert_array_equal(itself({"a": np.array([7])}), [7])
