"""The rows' token ids as torch tensors, for the parts of Transformers that look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from qeff_framework.generation.rows import Row

if TYPE_CHECKING:
    import torch


class TokenHistory:
    """Prompt and new tokens of a row, in a buffer that is allocated once for each row.

    Each row has its own ids without padding, whatever the lengths of its neighbours: `ids` returns ``[1, length]`` int64.
    Transformers pads unequal prompts on the left instead and teaches its processors to look past that.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, torch.Tensor] = {}
        self._lengths: dict[int, int] = {}

    def ids(self, row: Row) -> torch.LongTensor:
        """All ids of a row up to now: a view, which later tokens leave as it is."""
        import torch

        if row.index not in self._tensors:
            array = np.zeros((1, len(row.prompt) + row.limit), dtype=np.int64)
            array[0, : len(row.prompt)] = row.prompt
            self._tensors[row.index] = torch.from_numpy(array)
            self._lengths[row.index] = len(row.prompt)
        tensor, known = self._tensors[row.index], self._lengths[row.index]
        for token in row.generated[known - len(row.prompt) :]:
            tensor[0, known] = token
            known += 1
        self._lengths[row.index] = known
        # The dtype is int64; torch's stubs have no way of telling that from a slice.
        return cast("torch.LongTensor", tensor[:, :known])

    def forget(self, row: Row) -> None:
        """Gives the buffer of a finished row back."""
        self._tensors.pop(row.index, None)
        self._lengths.pop(row.index, None)
