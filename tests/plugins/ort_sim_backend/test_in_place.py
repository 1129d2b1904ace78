"""Which states may be overwritten: those whose every reader comes before the writer."""

from __future__ import annotations

import pytest

from ort_sim_backend.in_place import states_updated_in_place
from qeff_framework.plugin_api import StateSpec
from tests.lowering.graphs import parse

GRAPH = """
g (float[4] state, int64[1, 1] index, float[1] new) => (float[4] state_RetainedState, float[N] seen)
{ %s }
"""
READ_BEFORE = """held = GatherND (state, index) sum = Add (held, new)
                 state_RetainedState = ScatterND (state, index, sum) seen = Neg (sum)"""
READ_ASIDE = "seen = Neg (state) state_RetainedState = ScatterND (state, index, new)"
SIZE_ASIDE = "size = Shape (state) seen = CastLike (size, new) state_RetainedState = ScatterND (state, index, new)"
AS_UPDATES = "other = Neg (state) state_RetainedState = ScatterND (other, index, new) seen = Neg (new)"
NEW_TENSOR = "state_RetainedState = Neg (state) seen = Neg (new)"


@pytest.mark.parametrize(
    ("body", "in_place"),
    [(READ_BEFORE, True), (READ_ASIDE, False), (SIZE_ASIDE, True), (AS_UPDATES, False), (NEW_TENSOR, False)],
    ids=["read before", "read aside", "size aside", "another base", "new tensor"],
)
def test_states_updated_in_place(body, in_place):
    spec = StateSpec(input="state", output="state_RetainedState")

    assert states_updated_in_place(parse(GRAPH % body), [spec]) == (["state"] if in_place else [])
