"""Sines and cosines of positions as tables."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_angles_that_grow_with_the_text_are_refused() -> None:
    """A table would need a row for each pair of position and length; computed in float16, they would be silently wrong."""
    grown = "length = Cast <to = 1> (prompt_lengths) more = Unsqueeze (length, axis) scaled = Div (column, more)"
    text = ROTARY.replace("SCALE", grown).replace("position_ids) =>", "position_ids, int64[B, 1] prompt_lengths) =>")
    with pytest.raises(CompileError, match=r"grow with the length of the text.*max_position_embeddings"):
        RotaryTables(16)(parse(text))


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
