"""Checks of the numbers in a step's inputs. A device would ignore what does not fit, and return wrong numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.contracts import Array

#: Inputs that hold positions, and the dimensions that each of them must stay below.
POSITIONS = {"position_ids": ("ctx_len", "comp_ctx_lengths"), "encoder_position_ids": ("encoder_ctx_len",)}
#: The input that holds rows of the cache, and the dimension that counts these.
ROWS, CACHE_ROWS = "batch_index", "full_batch_size"

_REMEDIES = {
    "ctx_len": "Stop earlier or compile with a larger ctx_len",
    "comp_ctx_lengths": "Take a step with a longer comp_ctx_lengths",
    "encoder_ctx_len": "Shorten the source or compile with a larger encoder_seq_len",
}


def check_step(inputs: Mapping[str, Array], dims: Mapping[str, int]) -> None:
    """Checks positions and cache rows of a step whose shapes are those of a specialization.

    Args:
        inputs: the caller's inputs.
        dims: sizes of the specialization that the inputs have chosen.

    Raises:
        InputError: see `check_positions` and `check_rows`.
    """
    for name, limits in POSITIONS.items():
        slots = {dim: dims[dim] for dim in limits if dim in dims}
        if name in inputs and slots:
            check_positions(inputs[name], slots, name=name)
    if ROWS in inputs and CACHE_ROWS in dims:
        check_rows(inputs[ROWS], cache_rows=dims[CACHE_ROWS])


def check_positions(position_ids: NDArray[Any], limits: Mapping[str, int], *, name: str = "position_ids") -> None:
    """Checks that the tokens of each row stand in front of its padding, are consecutive and have slots in the cache.

    Negative positions are padding. Lowerings may rely on its place: the first token of a row says whether a text begins, and the
    columns in front of a token are those of the tokens before it. Every session has this one rule: changing it here changes it
    for all backends.

    Args:
        position_ids: ``[B, S]``, integers.
        limits: by dimension, the number of slots that the positions must stay below: ``{"ctx_len": 128}``.
        name: of the input, for the message.

    Raises:
        InputError: a position is beyond a limit, a token stands behind padding, or the positions of a row do not rise by one
            from token to token.
    """
    last = int(position_ids.max(initial=-1))
    for dim, slots in limits.items():
        if last >= slots:
            row, token = np.argwhere(position_ids >= slots)[0]
            raise InputError(
                f"position {position_ids[row, token]} of row {row} does not fit into the context: {dim} is {slots}, the last "
                f"position is {slots - 1}. {_REMEDIES.get(dim, f'Compile with a larger {dim}')}"
            )
    if position_ids.shape[1] == 1:
        return
    is_token = position_ids >= 0
    is_behind_padding = is_token[:, 1:] & ~is_token[:, :-1]
    is_jump = is_token[:, 1:] & (np.diff(position_ids, axis=1) != 1)
    wrong = (is_behind_padding | is_jump).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{name} of row {row} are {position_ids[row].tolist()}: the tokens of a row stand in front of its padding (-1), and "
            "their positions rise by one from token to token; move the tokens to the front"
        )


def check_rows(batch_index: NDArray[Any], *, cache_rows: int) -> None:
    """Checks that each row of a step has a cache row of its own. Two rows would overwrite each other.

    Args:
        batch_index: ``[B, 1]``, integers; rows of padding have one as well.
        cache_rows: rows of the cache.

    Raises:
        InputError: a cache row does not exist or is named twice.
    """
    rows = batch_index.ravel().tolist()
    if len(set(rows)) != len(rows) or min(rows) < 0 or max(rows) >= cache_rows:
        raise InputError(
            f"batch_index is {rows}; each row of a step, padding included, needs a cache row of its own, from 0 to "
            f"{cache_rows - 1}"
        )
