"""Rules about the scores as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.generation.rows import Row

if TYPE_CHECKING:
    from qeff_framework.generation.scores.rule import Scores


class FiniteScores:
    """NaN becomes 0, an infinity the greatest or the least float32."""

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        greatest = float(np.finfo(np.float32).max)
        np.nan_to_num(scores, copy=False, nan=0.0, posinf=greatest, neginf=-greatest)


class LogProbabilities:
    """Scores become logarithms of probabilities."""

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        scores[:] = log_softmax(scores)


def log_softmax(scores: Scores) -> Scores:
    """Logarithms of the probabilities that `scores` ``[V]`` stand for."""
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def softmax(scores: Scores) -> Scores:
    """The probabilities that `scores` ``[V]`` stand for."""
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())
