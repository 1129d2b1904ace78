"""The rules for ``position_ids`` of a step."""

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
