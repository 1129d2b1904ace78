"""Cache updates as ScatterND: exactly the named slots change."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings

from ort_sim_backend.lowering import RemoveUnused, ScatterCache
from tests.plugins.ort_sim_backend.graphs import STATES, attention_layer, lowered, op_types, run, run_in_place, session
from tests.plugins.ort_sim_backend.steps import sequences


@cache
def sessions(chunk: int) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    model = attention_layer(chunk=chunk)
    changed = lowered(model, (ScatterCache(), RemoveUnused()))
    assert op_types(changed).count("ScatterND") == 2
    assert "KVUpdate" not in {function.name for function in changed.functions.values()}
    return session(model), session(changed)


@pytest.mark.parametrize("chunk", [0, 4])
@settings(max_examples=60, deadline=None)
@given(sequences())
def test_steps_equal_the_dialect(chunk, sequence):
    portable, changed = sessions(chunk)
    expected_states, states = sequence.states(), sequence.states()
    for number in range(len(sequence.steps)):
        feeds = sequence.feeds(number)
        expected = run(portable, {**feeds, **expected_states})
        expected_states = {name: expected[output] for name, output in STATES.items()}

        attended = run_in_place(changed, feeds, states)["attended"]

        for name, buffer in states.items():
            np.testing.assert_array_equal(buffer, expected_states[name])
        np.testing.assert_allclose(attended, expected["attended"], rtol=1e-6, atol=1e-6)
