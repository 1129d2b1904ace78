"""The rules for ``position_ids`` and ``batch_index`` of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.plugin_api import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_positions(position_ids: NDArray[np.int64], *, dim: str, slots: int) -> None:
    """Raises `InputError` unless every position of ``position_ids [B, S]`` is one of the slots that `dim` counts.

    Negative positions are padding. The others of one row must rise by one from token to token: the cache is a sequence.
    """
    if position_ids.size and int(position_ids.max()) >= slots:
        row, token = np.argwhere(position_ids >= slots)[0]
        raise InputError(
            f"position {position_ids[row, token]} of row {row} does not fit into the context: {dim} is {slots}, "
            f"the last position is {slots - 1}. Stop earlier or compile with a larger {dim}"
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
