"""Rows of caches that are moved, so that each step finds its rows one behind the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ort_sim_backend.cache_rows import CacheRows

ROWS, HEADS, SLOTS = 5, 2, 4


@given(
    st.lists(
        st.permutations(range(ROWS)).flatmap(lambda rows: st.integers(1, ROWS).map(lambda n: rows[:n])), max_size=8
    )
)
def test_a_step_finds_what_its_rows_hold(steps: list[list[int]]) -> None:
    buffers = [np.zeros((ROWS, HEADS, SLOTS, 1), np.int64) for _ in range(2)]
    expected = np.zeros_like(buffers[0])
    rows = CacheRows(buffers)
    for number, names in enumerate(steps, 1):
        first = rows.arrange(names)
        part = slice(first, first + len(names))
        assert all(np.array_equal(buffer[part], expected[names]) for buffer in buffers)
        slot = number % SLOTS
        rows.written(first, np.full((len(names), 1), slot))
        for buffer in buffers:
            buffer[part, :, slot] = number
        expected[names, :, slot] = number
    assert all(np.array_equal(buffer[rows.places], expected) for buffer in buffers)


@given(st.permutations(range(ROWS)), st.permutations(range(ROWS)), st.integers(1, ROWS - 1))
def test_rows_of_steps_that_take_turns_stay_where_they_are(before, named, count: int) -> None:
    rows = CacheRows([np.zeros((ROWS, HEADS, SLOTS, 1))])
    rows.arrange(before)
    turns = named[:count], named[count:]
    for step in turns * 2:
        rows.arrange(step)
    settled = list(rows.places)
    for step in turns:
        rows.arrange(step)
        assert rows.places == settled


def test_rows_that_lie_right_stay() -> None:
    rows = CacheRows([np.zeros((ROWS, HEADS, SLOTS, 1))])
    assert rows.arrange([1, 2, 3]) == 1
    assert rows.arrange([1, 4, 3]) == 1, "only the row between them is exchanged"
    assert rows.places == [0, 1, 4, 3, 2]
    assert rows.arrange([4, 3]) == 2
    rows.clear()
    assert rows.places == [0, 1, 2, 3, 4]
