"""The rules for ``position_ids`` and ``batch_index`` of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.plugin_api import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_positions(position_ids: NDArray[np.int64], *, ctx_len: int) -> None:
    """Raises `InputError` unless every position of ``position_ids [B, S]`` has a slot in the context.

    Negative positions are padding. The others of one row must rise by one from token to token: the cache is a sequence.
    """
    if position_ids.size and int(position_ids.max()) >= ctx_len:
        row, token = np.argwhere(position_ids >= ctx_len)[0]
        raise InputError(
            f"position {position_ids[row, token]} of row {row} does not fit into the context: ctx_len is {ctx_len}, "
            f"the last position is {ctx_len - 1}. Stop earlier or compile with a larger ctx_len"
        )
    if position_ids.shape[1] == 1:
        return
    for number, row in enumerate(position_ids):
        valid = row[row >= 0]
        if np.any(np.diff(valid) != 1):
            raise InputError(
                f"the positions of row {number} are {valid.tolist()}; apart from padding they must rise by one per token"
            )


def check_rows(batch_index: NDArray[np.int64], *, cache_rows: int) -> None:
    """Raises `InputError` unless each row of ``batch_index [B, 1]`` names a cache row of its own."""
    rows = batch_index.ravel().tolist()
    if len(set(rows)) != len(rows) or min(rows) < 0 or max(rows) >= cache_rows:
        raise InputError(
            f"batch_index is {rows}; each row of a step, padding included, needs a cache row of its own, from 0 to "
            f"{cache_rows - 1}"
        )
