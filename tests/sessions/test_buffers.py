"""Arrays of a session: sizes from the specialization, and the host's own update of a cache."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qeff_framework.dialect.reference import kv_update
from qeff_framework.sessions import allocate, host_inputs, host_outputs, state_buffers, write_tokens
from tests.sessions.programs import program


def test_sizes_are_those_of_the_specialization() -> None:
    compiled = program()
    prefill = compiled.specializations[0].dims
    arrays = allocate((*host_inputs(compiled), *host_outputs(compiled)), prefill)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "input_ids": ((2, 4), "int64"),
        "position_ids": ((2, 4), "int64"),
        "batch_index": ((2, 1), "int64"),
        "total": ((2,), "int64"),
    }
    [(name, state)] = state_buffers(compiled).items()
    assert (name, state.shape, state.any()) == ("past", (3, 8), False)


@given(st.lists(st.permutations([-1, -1, 0, 3, 4]), min_size=1, max_size=3), st.integers(0, 9))
def test_tokens_are_written_as_in_the_dialect(positions: list[list[int]], seed: int) -> None:
    """Whatever stands in padding writes nothing."""
    random, position_ids = np.random.default_rng(seed), np.array(positions)
    cache = random.standard_normal((len(positions), 2, 5, 3)).astype(np.float32)
    new = random.standard_normal((len(positions), 2, 5, 3)).astype(np.float32)
    new.swapaxes(1, 2)[position_ids < 0] = [[np.nan], [np.inf]]
    expected = kv_update(cache, new, position_ids)
    write_tokens(cache, new, position_ids)
    np.testing.assert_array_equal(cache, expected)
