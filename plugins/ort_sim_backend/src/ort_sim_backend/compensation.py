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

from qeff_framework.lowering import WeightBlocks

Numbers = NDArray[np.float32]
Levels = NDArray[np.uint8]

#: What is added to the diagonal, as a part of its mean: few calibration tokens say little about rare directions.
_DAMPING = 0.01


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
    length = weight.shape[1]
    whole = blocks.count(length) * blocks.size
    damped = _damped(covariance, whole)
    factor, importance = _factor(damped), np.diagonal(damped).astype(np.float32)
    left = np.zeros((len(weight), whole), np.float32)
    left[:, :length] = weight
    levels = np.empty((len(weight), blocks.count(length), blocks.size), np.uint8)
    scales = np.empty(levels.shape[:2], np.float32)
    zeros = np.empty(levels.shape[:2], np.uint8)
    rounded = np.empty_like(left)
    most = 2**blocks.bits - 1
    for number in range(levels.shape[1]):
        start = number * blocks.size
        columns = slice(start, start + blocks.size)
        cut = left[:, columns].copy()
        fit = blocks.fit(cut, importance[columns])
        scale, zero = fit.scales, fit.zeros.astype(np.float32)
        scales[:, number], zeros[:, number] = fit.scales, fit.zeros
        errors = np.empty_like(cut)
        for column in range(blocks.size):
            level = np.clip(np.rint(cut[:, column] / scale) + zero, 0, most)
            levels[:, number, column] = level
            value = (level - zero) * scale
            rounded[:, start + column] = value
            row = factor[start + column, columns]
            error = (cut[:, column] - value) / row[column]
            cut[:, column:] -= error[:, None] * row[None, column:]
            errors[:, column] = error
        left[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
    return Compensated(
        levels=blocks.packed(levels),
        scales=scales,
        zeros=blocks.packed(zeros),
        error=_relative(rounded[:, :length] - weight, weight, covariance),
    )


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


def _relative(change: Numbers, weight: Numbers, covariance: NDArray[Any]) -> float:
    """``tr(D C D') / tr(W C W')``."""
    matrix = covariance.astype(np.float32)
    of_all = float(np.vdot(weight @ matrix, weight))
    return float(np.vdot(change @ matrix, change)) / of_all if of_all > 0 else 0.0
