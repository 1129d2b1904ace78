"""Rules that depend on how long the text is: what must come first, what last, what not yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores.rule import known_ids

if TYPE_CHECKING:
    from qeff_framework.generation.scores.rule import Scores


class MinimumLength:
    """No end of sequence before the text, the prompt included, has `length` tokens."""

    def __init__(self, length: int, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        self._length = length
        self._ends = known_ids(eos_token_ids, vocab_size)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        if row.length < self._length:
            scores[self._ends] = -np.inf


class ForcedFirstToken:
    """The first token behind a start of one token."""

    def __init__(self, token: int, vocab_size: int) -> None:
        self._token = _checked([token], vocab_size, "forced_bos_token_id")

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        if row.length == 1:
            _force(self._token, scores)


class ForcedLastToken:
    """The last token that the row's limit leaves: one of several."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        self._tokens = _checked(tokens, vocab_size, "forced_eos_token_id")

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        if len(row.generated) == row.limit - 1:
            _force(self._tokens, scores)


class LengthDecay:
    """Raises the score of an end of sequence exponentially once more than `start` tokens are generated."""

    def __init__(self, start: int, factor: float, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        self._start = start
        self._factor = factor
        self._ends = _checked(eos_token_ids, vocab_size, "eos_token_id, with exponential_decay_length_penalty")

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        late = len(row.generated) - self._start
        if late > 0:
            ends = scores[self._ends]
            grown = ends + np.abs(ends) * _power(self._factor, late)
            scores[self._ends] = np.where(np.isfinite(ends), grown, ends)


class Suppress:
    """Tokens that are never generated."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        self._tokens = known_ids(tokens, vocab_size)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        scores[self._tokens] = -np.inf


class SuppressAtBegin:
    """Tokens that are not generated first; where `behind_forced`, not behind a forced first token."""

    def __init__(self, tokens: Sequence[int], vocab_size: int, *, behind_forced: bool) -> None:
        self._tokens = known_ids(tokens, vocab_size)
        self._behind_forced = behind_forced

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        # Transformers forces a first token behind a start of one token only.
        place = 1 if self._behind_forced and len(row.prompt) == 1 else 0
        if len(row.generated) == place:
            scores[self._tokens] = -np.inf


def _checked(tokens: Sequence[int], vocab_size: int, setting: str) -> list[int]:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise InputError(f"{setting}: the model cannot generate the token {token}, it knows 0 to {vocab_size - 1}")
    return sorted(set(tokens))


def _force(tokens: Sequence[int], scores: Scores) -> None:
    scores.fill(-np.inf)
    scores[tokens] = 0


def _power(factor: float, exponent: int) -> np.float32:
    """``factor ** exponent - 1``, at most the greatest float32."""
    greatest = float(np.finfo(np.float32).max)
    try:
        return np.float32(min(factor**exponent - 1, greatest))
    except OverflowError:
        return np.float32(greatest)
