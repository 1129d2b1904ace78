"""The caches that the session keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.plugin_api import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


def check_positions(position_ids: NDArray[np.int64], *, ctx_len: int) -> None:
    """Raises `InputError` unless every position of ``position_ids [B, S]`` has a slot; negative ones are padding."""
    if position_ids.size and int(position_ids.max()) >= ctx_len:
        row, token = np.argwhere(position_ids >= ctx_len)[0]
        raise InputError(
            f"position {position_ids[row, token]} of row {row} does not fit into the context: ctx_len is {ctx_len}, the last "
            f"position is {ctx_len - 1}. Stop earlier or compile with a larger ctx_len"
        )


def write_tokens(cache: Array, new: Array, position_ids: NDArray[np.int64]) -> None:
    """Writes ``new [B, H, S, D]`` into ``cache [B, H, C, D]`` in place at ``position_ids [B, S]``; padding writes nothing."""
    for row, positions in enumerate(position_ids):
        valid = positions >= 0
        cache[row][:, positions[valid]] = new[row][:, valid]
