"""The images of a prompt, chunk by chunk."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qeff_framework.images.rope_positions import rope_positions
from qeff_framework.images.rows import RowImages

IMAGE = 9


def row(ids: list[int]) -> RowImages:
    return RowImages.of(ids, np.zeros((ids.count(IMAGE), 2), dtype=np.float32), IMAGE)


def test_image_tokens_are_counted_over_all_images() -> None:
    assert row([1, IMAGE, IMAGE, 2, IMAGE, 3]).index.tolist() == [-1, 0, 1, -1, 2, -1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(3, 6))
def test_chunks_cut_no_image_and_leave_no_token_out(images: list[int], width: int) -> None:
    """`images`: tokens of each image, with one of text before it; none is longer than a chunk."""
    ids = [token for count in images for token in (1, *[IMAGE] * count)]
    of_row, start = row(ids), 0
    while start < len(ids):
        count = of_row.chunk(start, width)
        assert 0 < count <= width
        stop = start + count
        assert stop >= len(ids) or not (ids[stop - 1] == ids[stop] == IMAGE)
        start = stop


def test_positions_go_on_behind_the_longest_side_of_an_image() -> None:
    ids = [1, *[IMAGE] * 6, 2, 3]
    positions, shift = rope_positions(ids, IMAGE, [(1, 4, 6)], 2)
    assert positions[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 4, 5]
    assert positions[1].tolist() == [0, 1, 1, 1, 2, 2, 2, 4, 5]
    assert positions[2].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5]
    assert len(ids) + shift == 6
