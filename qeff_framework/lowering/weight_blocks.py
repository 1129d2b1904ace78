"""Numbers in blocks of 8 or 4 bits with one scale each, the form that ``com.microsoft::MatMulNBits`` and its relatives read.

A level q stands for ``(q - 2 ** (bits - 1)) * scale``. The number of a block that is furthest from zero gets the lowest level, so
every level is in use; the scale has the sign that this takes. Against scales that leave the lowest level out, 4 bits lose 12 %
less (root of the mean square over normal and Laplace numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]

#: Most numbers that are compressed at a time; a few times their size exists beside the weight.
_PIECE = 2**22


@dataclass(frozen=True, kw_only=True)
class WeightBlocks:
    """How the last axis is cut. A last block that is not full is filled with zeros."""

    bits: int
    size: int

    def count(self, length: int) -> int:
        """Blocks in so many numbers."""
        return -(-length // self.size)

    @property
    def bytes(self) -> int:
        """Bytes of one block."""
        return self.size * self.bits // 8

    def scales(self, weight: Numbers) -> Numbers:
        """``[..., K]`` gives ``[..., blocks]``."""
        scales = np.empty((*weight.shape[:-1], self.count(weight.shape[-1])), np.float32)
        for index in _parts(weight.shape):
            scales[index] = self._scales(self._cut(weight[index]))
        return scales

    def levels(self, weight: Numbers) -> NDArray[np.uint8]:
        """``[..., K]`` gives ``[..., blocks, bytes]``; of two levels in a byte the first has the low bits."""
        packed = np.empty((*weight.shape[:-1], self.count(weight.shape[-1]), self.bytes), np.uint8)
        middle = 2 ** (self.bits - 1)
        for index in _parts(weight.shape):
            cut = self._cut(weight[index])
            levels = np.rint(cut / self._scales(cut)[..., None]) + middle
            whole = np.clip(levels, 0, 2 * middle - 1).astype(np.uint8)
            packed[index] = whole if self.bits == 8 else whole[..., 0::2] | whole[..., 1::2] << 4
        return packed

    def _cut(self, weight: Numbers) -> Numbers:
        length, blocks = weight.shape[-1], self.count(weight.shape[-1])
        whole = np.zeros((*weight.shape[:-1], blocks * self.size), np.float32)
        whole[..., :length] = weight
        return whole.reshape(*weight.shape[:-1], blocks, self.size)

    def _scales(self, cut: Numbers) -> Numbers:
        furthest = np.abs(cut).argmax(axis=-1, keepdims=True)
        scales = np.take_along_axis(cut, furthest, axis=-1)[..., 0] / np.float32(-(2 ** (self.bits - 1)))
        scales[scales == 0] = 1.0
        return scales


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[int | slice, ...]]:
    """Indices of parts of an array of rows; together they are all of it."""
    *leading, rows, length = shape
    step = max(1, _PIECE // length)
    for index in np.ndindex(*leading):
        for start in range(0, rows, step):
            yield (*index, slice(start, start + step))
