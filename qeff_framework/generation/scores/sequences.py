"""Biases for sequences of tokens, and sequences that must not come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.generation.rows import Row

if TYPE_CHECKING:
    from qeff_framework.generation.scores.rule import Scores


class SequenceBias:
    """Adds a bias to the token that would complete a sequence; to the token of a sequence of one always.

    Raises `InputError` for a token that the model cannot generate. `setting` is the name under which the sequences were given.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float], vocab_size: int, *, setting: str) -> None:
        unknown = sorted({token for sequence in biases for token in sequence if not 0 <= token < vocab_size})
        if unknown:
            raise InputError(
                f"{setting} holds the token ids {', '.join(map(str, unknown))}, the model knows 0 to {vocab_size - 1}: "
                "are these ids of this model's tokenizer?"
            )
        #: ``[V]``: biases of sequences of one token.
        self._single = np.zeros(vocab_size, dtype=np.float32)
        #: Length of the prefix -> prefix -> last tokens with their biases.
        self._longer: dict[int, dict[tuple[int, ...], list[tuple[int, np.float32]]]] = {}
        for sequence, bias in biases.items():
            *prefix, last = sequence
            if prefix:
                table = self._longer.setdefault(len(prefix), {})
                table.setdefault(tuple(prefix), []).append((last, np.float32(bias)))
            else:
                self._single[last] = bias
        self._has_single = bool(self._single.any())

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        # A token's biases are added up before they meet its score, as in Transformers: the order decides the last bit.
        biased: dict[int, np.float32] = {}
        for length, table in self._longer.items():
            for token, bias in table.get(row.tail(length), ()):
                biased[token] = biased.get(token, self._single[token]) + bias
        before = {token: scores[token] for token in biased}
        if self._has_single:
            np.add(scores, self._single, out=scores)
        for token, bias in biased.items():
            scores[token] = before[token] + bias
