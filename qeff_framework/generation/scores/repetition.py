"""Penalties for tokens that are in the text, or in the source, already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores.rule import UnreadTokens, known_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.generation.scores.rule import Scores


class RepetitionPenalty:
    """Divides positive scores of the row's tokens by `penalty` and multiplies negative ones."""

    def __init__(self, penalty: float, vocab_size: int) -> None:
        self._penalty = penalty
        self._unread = UnreadTokens()
        #: ``[V]``: the row holds the token.
        self._seen = np.zeros(vocab_size, dtype=np.bool_)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        for token in self._unread.of(row):
            # The input vocabulary may be larger than the output's.
            if token < len(self._seen):
                self._seen[token] = True
        _penalize(scores, self._seen, self._penalty)


class SourcePenalty:
    """Raises the scores of the source's tokens: the repetition penalty with the inverse factor. Without an encoder the
    source is the prompt.
    """

    def __init__(self, penalty: float, source: Sequence[int], vocab_size: int) -> None:
        self._penalty = 1 / penalty
        self._seen = np.zeros(vocab_size, dtype=np.bool_)
        self._seen[known_ids(source, vocab_size)] = True

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        _penalize(scores, self._seen, self._penalty)


class AnswerPenalty:
    """Subtracts `penalty` from the scores of tokens that the answer holds: once, or once for each occurrence."""

    def __init__(self, penalty: float, vocab_size: int, *, per_occurrence: bool) -> None:
        self._penalty = penalty
        self._per_occurrence = per_occurrence
        self._read = 0
        #: ``[V]``: what is subtracted.
        self._amounts = np.zeros(vocab_size, dtype=np.float32)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        for token in row.generated[self._read :]:
            self._amounts[token] = self._penalty + (self._amounts[token] if self._per_occurrence else 0)
        self._read = len(row.generated)
        scores -= self._amounts


def _penalize(scores: Scores, seen: NDArray[np.bool_], penalty: float) -> None:
    negative = scores < 0
    np.multiply(scores, penalty, out=scores, where=seen & negative)
    np.divide(scores, penalty, out=scores, where=seen & ~negative)
