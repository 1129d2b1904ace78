"""Rounding a weight so that the product's results change least, not the weight itself.

The method is GPTQ (Frantar et al., 2022). The columns of a weight are rounded one after the other, and the error of each is made
up for by the columns that are not rounded yet, as far as the inputs of the product are correlated: these are known from a
calibration, as the mean of their products, ``[K, K]``. Scales and zeros of a block are fitted when its first column is reached,
to what is left then; the errors count as much as the input is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeff_framework.lowering import BlockFit, WeightBlocks

Numbers = NDArray[np.float32]
Levels = NDArray[np.uint8]

#: What is added to the diagonal, as a part of its mean: few calibration tokens say little about rare directions.
_DAMPING = 0.01
#: Most numbers of a weight that are rounded at a time; a few times their size exists beside the weight.
_PIECE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Compensated:
    """A weight ``[N, K]`` in blocks along K, as `WeightBlocks` packs them."""

    #: ``[N, blocks, bytes]``
    levels: Levels
    #: ``[N, blocks]``
    scales: Numbers
    #: ``[N, bytes]``
    zeros: Levels
    #: Mean square of what changes in the results, over their own mean square.
    error: float


def compensated(weight: Numbers, covariance: NDArray[Any], blocks: WeightBlocks) -> Compensated:
    """Rounds `weight` ``[N, K]`` for inputs with the mean products `covariance` ``[K, K]``; `blocks` are fitted ones."""
    count, length = weight.shape
    damped = _damped(covariance, blocks.count(length) * blocks.size)
    factor, importance = _factor(damped), np.diagonal(damped).astype(np.float32)
    levels = np.empty((count, blocks.count(length), blocks.bytes), np.uint8)
    scales = np.empty(levels.shape[:2], np.float32)
    zeros = np.empty((count, blocks.bytes_of_zeros(length)), np.uint8)
    matrix, change, whole = covariance.astype(np.float32), 0.0, 0.0
    step = max(1, _PIECE // length)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        part = np.ascontiguousarray(weight[rows], np.float32)
        fit, rounded = _rounded(part, factor, importance, blocks)
        levels[rows], scales[rows], zeros[rows] = blocks.packed(fit.levels), fit.scales, blocks.packed(fit.zeros)
        wrong = rounded - part
        change += float(np.vdot(wrong @ matrix, wrong))
        whole += float(np.vdot(part @ matrix, part))
    return Compensated(levels=levels, scales=scales, zeros=zeros, error=change / whole if whole > 0 else 0.0)


def _rounded(weight: Numbers, factor: Numbers, importance: Numbers, blocks: WeightBlocks) -> tuple[BlockFit, Numbers]:
    """The blocks of `weight` ``[N, K]``, and the numbers that they stand for, ``[N, K]``."""
    count, length = weight.shape
    left = np.zeros((count, len(factor)), np.float32)
    left[:, :length] = weight
    levels = np.empty((count, blocks.count(length), blocks.size), np.uint8)
    scales = np.empty(levels.shape[:2], np.float32)
    zeros = np.empty(levels.shape[:2], np.uint8)
    rounded = np.empty_like(left)
    most = 2**blocks.bits - 1
    for number in range(levels.shape[1]):
        start = number * blocks.size
        columns = slice(start, start + blocks.size)
        fit = blocks.fit(left[:, columns], importance[columns])
        scale, zero = fit.scales, fit.zeros.astype(np.float32)
        scales[:, number], zeros[:, number] = fit.scales, fit.zeros
        # Columns as rows: each is read and written as one piece.
        cut, made = left[:, columns].T.copy(), np.empty((blocks.size, count), np.float32)
        errors = np.empty_like(cut)
        for column in range(blocks.size):
            level = np.clip(np.rint(cut[column] / scale) + zero, 0, most)
            levels[:, number, column] = level
            made[column] = (level - zero) * scale
            row = factor[start + column, columns]
            errors[column] = (cut[column] - made[column]) / row[column]
            cut[column:] -= row[column:, None] * errors[column]
        rounded[:, columns] = made.T
        left[:, columns.stop :] -= errors.T @ factor[columns, columns.stop :]
    return BlockFit(levels=levels, scales=scales, zeros=zeros), rounded[:, :length]


def _damped(covariance: NDArray[Any], whole: int) -> NDArray[np.float64]:
    """``[whole, whole]``; what fills the last block stands alone, and so do inputs that were always zero."""
    length = len(covariance)
    matrix = np.eye(whole)
    matrix[:length, :length] = covariance
    matrix[range(length), range(length)] += _DAMPING * float(np.diagonal(covariance).mean()) or 1.0
    return matrix


def _factor(matrix: NDArray[np.float64]) -> Numbers:
    """The upper Cholesky factor of the inverse."""
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(matrix)).T.astype(np.float32))
