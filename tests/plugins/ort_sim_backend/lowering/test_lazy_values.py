from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from ort_sim_backend.lowering import LazyValues
from tests.lowering.graphs import STATES, attention_layer, lowered, run, session
from tests.lowering.steps import sequences

#: Attention that no kernel takes.
VARIANTS = {"plain": {"chunk": 3}, "sinks": {"chunk": 3, "sinks": True}, "softcap": {"chunk": 2, "softcap": 2.0}}


@pytest.fixture(scope="module", params=VARIANTS)
def models(request):
    portable = attention_layer(**VARIANTS[request.param])
    return session(portable), session(lowered(portable, [LazyValues()]))


def test_results_are_those_of_the_dialect_whatever_unused_slots_hold(models):
    @settings(max_examples=25, derandomize=True)
    @given(sequence=sequences())
    def same(sequence):
        states = sequence.states()
        for number in range(len(sequence.steps)):
            expected, result = (run(model, {**sequence.feeds(number), **states}) for model in models)
            np.testing.assert_allclose(result["attended"], expected["attended"], rtol=1e-6, atol=1e-7)
            states = {name: expected[output] for name, output in STATES.items()}

    same()
