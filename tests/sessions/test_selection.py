"""Which inputs a step takes; the messages name what was given, what is wrong and what fits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeff_framework.contracts import Specialization
from qeff_framework.errors import InputError
from qeff_framework.sessions import StepSelector, check_positions, check_rows
from tests.sessions.programs import feeds, program

DECODE = feeds([[0], [0]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": DECODE["input_ids"]}, r"missing: position_ids, batch_index\). It takes input_ids, position_ids, batch_"),
        ({**DECODE, "past": 0, "mask": 0}, r"unknown: mask; retained states, which stay with the session: past\)"),
        ({**DECODE, "input_ids": np.zeros((2, 1), np.int32)}, "input input_ids is int32, the model takes int64"),
        (feeds([[0, 1], [0, 1]]), r"has the shapes input_ids \[2, 2\], .*Compiled are prefill: input_ids \[2, 4\], .*; decode: "),
        (feeds([[0]], rows=[0]), r"has the shapes input_ids \[1, 1\]"),
        (feeds(0), r"has the shapes input_ids \[\]"),
        (feeds([[0, 1, 2, 3], [5, 6, 7, 8]]), "position 8 of row 1 does not fit.*ctx_len is 8.*Stop earlier"),
        (feeds([[0, 1, 2, 3], [0, -1, 2, -1]]), r"position_ids of row 1 are \[0, -1, 2, -1\]: the tokens.*in front"),
        (feeds([[0], [0]], rows=[1, 1]), r"batch_index is \[1, 1\].*a cache row of its own, from 0 to 2"),
    ],
    ids=["missing", "unknown", "dtype", "length", "rows", "scalar", "context", "gap", "cache row"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StepSelector(program()).select(inputs)


def test_a_position_beyond_what_the_step_reads_is_refused() -> None:
    """Such a token would not see itself."""
    compiled = program()
    short = Specialization(name="short", dims={**compiled.specializations[1].dims, "comp_ctx_lengths": 4})
    selector = StepSelector(replace(compiled, specializations=(short,)))
    assert selector.select(feeds([[3], [-1]]))[0] is short
    with pytest.raises(InputError, match="position 4 of row 0.*comp_ctx_lengths is 4.*longer comp_ctx_lengths"):
        selector.select(feeds([[4], [0]]))


@given(
    st.lists(st.lists(st.integers(-3, 9), min_size=3, max_size=3), min_size=1, max_size=3),
    st.sampled_from([np.int32, np.int64]),
)
def test_tokens_stand_in_front_and_follow_one_another(positions: list[list[int]], dtype: type) -> None:
    def is_text(row: list[int]) -> bool:
        tokens = list(itertools.takewhile(lambda place: place >= 0, row))
        return max([-1, *row[len(tokens) :]]) < 0 and tokens == [tokens[0] + index for index in range(len(tokens))]

    consecutive = all(map(is_text, positions))
    fits = max(map(max, positions)) < 8
    if consecutive and fits:
        check_positions(np.array(positions, dtype), {"ctx_len": 8})
    else:
        with pytest.raises(InputError, match="rise by one" if fits else "does not fit"):
            check_positions(np.array(positions, dtype), {"ctx_len": 8})


@pytest.mark.parametrize("rows", [[[0], [0]], [[-1]], [[3]]])
def test_rows_of_a_step_need_cache_rows_of_their_own(rows: list[list[int]]) -> None:
    check_rows(np.array([[2], [0]]), cache_rows=3)
    with pytest.raises(InputError, match="a cache row of its own, from 0 to 2"):
        check_rows(np.array(rows), cache_rows=3)
