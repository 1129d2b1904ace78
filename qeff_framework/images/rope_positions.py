"""Positions of several axes for rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rope_positions(
    ids: Sequence[int], image_token_id: int, grids: Sequence[Sequence[int]], merge_size: int
) -> tuple[NDArray[np.int64], int]:
    """Positions ``[3, S]`` of a prompt (time, height, width), and what the position of each later token adds to its number.

    A token of text is one further than all before it, on all axes. The tokens of an image begin there too, and count along its
    axes; `grids` holds time, height and width of each image in patches, `merge_size` squared of which are a token.
    """
    positions = np.zeros((3, len(ids)), dtype=np.int64)
    place, following = 0, 0
    images = iter(grids)
    while place < len(ids):
        if ids[place] != image_token_id:
            positions[:, place] = following
            place, following = place + 1, following + 1
            continue
        time, height, width = next(images)
        shape = (time, height // merge_size, width // merge_size)
        axes = np.indices(shape).reshape(3, -1) + following
        positions[:, place : place + axes.shape[1]] = axes
        place, following = place + axes.shape[1], int(axes.max()) + 1
    return positions, following - len(ids)
