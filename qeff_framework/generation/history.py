"""The rows' token ids as torch tensors, for the parts of Transformers that look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from qeff_framework.generation.rows import Row

if TYPE_CHECKING:
    import torch


class TokenHistory:
    """Prompt and new tokens of every row, in buffers that are allocated once.

    Each row has its own ids without padding, whatever the lengths of its neighbours: `ids` returns ``[1, length]`` int64.
    Transformers pads unequal prompts on the left instead and teaches its processors to look past that.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        import torch

        self._arrays = [np.zeros((1, len(row.prompt) + row.limit), dtype=np.int64) for row in rows]
        self._tensors = [torch.from_numpy(array) for array in self._arrays]
        self._lengths = [len(row.prompt) for row in rows]
        for array, row in zip(self._arrays, rows, strict=True):
            array[0, : len(row.prompt)] = row.prompt

    def append(self, row: int, token: int) -> None:
        """Adds a new token to a row."""
        self._arrays[row][0, self._lengths[row]] = token
        self._lengths[row] += 1

    def ids(self, row: int) -> torch.LongTensor:
        """All ids of a row up to now: a view that the next `append` leaves as it is."""
        # The dtype is int64; torch's stubs have no way of telling that from a slice.
        return cast("torch.LongTensor", self._tensors[row][:, : self._lengths[row]])
