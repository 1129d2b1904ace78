"""The images of a prompt, chunk by chunk."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qeff_framework.images.rope_positions import FOLLOWING, IMAGES, TOKENS, RopeLayout, rope_positions
from qeff_framework.images.rows import BESIDE, NO_BLOCK, OF_IMAGE, OF_IMAGES, OF_PROMPT, RowImages

IMAGE = 9


def row(ids: list[int], block: str = OF_IMAGE) -> RowImages:
    return RowImages.of(ids, np.zeros((ids.count(IMAGE), 2), dtype=np.float32), [IMAGE], block=block)


def test_image_tokens_are_counted_over_all_images() -> None:
    """Text beside images is told from text of a prompt without them."""
    assert row([1, IMAGE, IMAGE, 2, IMAGE, 3]).index.tolist() == [BESIDE, 0, 1, BESIDE, 2, BESIDE]
    assert row([1, 2]).index.tolist() == [-1, -1]


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


def test_tokens_that_see_each_other_are_read_in_one_step() -> None:
    ids = [1, 2, IMAGE, IMAGE, 3, IMAGE, 4, 5]
    longest = {block: row(ids, block).longest_block for block in (NO_BLOCK, OF_IMAGE, OF_IMAGES, OF_PROMPT)}
    assert longest == {NO_BLOCK: 1, OF_IMAGE: 2, OF_IMAGES: 4, OF_PROMPT: 8}
    assert row(ids, NO_BLOCK).chunk(0, 3) == 3
    assert row(ids, OF_IMAGE).chunk(0, 3) == 2
    assert row(ids, OF_IMAGES).chunk(0, 5) == 2
    assert row(ids, OF_IMAGES).chunk(2, 5) == 5
    assert row(ids, OF_PROMPT).chunk(0, 8) == 8
    assert [row(ids, block).in_block.sum() for block in (OF_IMAGE, OF_PROMPT)] == [3, 8]


def test_positions_of_image_tokens_count_from_what_their_layout_says() -> None:
    """One axis counts from the text in front, one from the number of images in front, one from the tokens in front."""
    layout = RopeLayout(
        offsets=np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 3]]),
        bases=np.array([[FOLLOWING] * 4, [IMAGES] * 4, [TOKENS] * 4]),
        advance=2,
    )
    assert [*RopeLayout.from_json(layout.as_json()).bases[:, 0]] == [FOLLOWING, IMAGES, TOKENS]
    picture = [IMAGE] * 4
    positions, shift = rope_positions(np.array([1, *picture, 2, *picture, 3]) == IMAGE, [layout, layout], 3)
    assert positions[0].tolist() == [0, 1, 1, 1, 1, 3, 4, 4, 4, 4, 6]
    assert positions[1].tolist() == [0, 0, 1, 0, 1, 3, 1, 2, 1, 2, 6]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 3, 6, 7, 8, 9, 6]
    assert 11 + shift == 7
