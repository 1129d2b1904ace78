"""Bans of n-grams that the text, or the source, holds already."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores.rule import UnreadTokens

if TYPE_CHECKING:
    from qeff_framework.generation.scores.rule import Scores


class _Followers:
    """Which tokens have followed which ``n - 1`` tokens."""

    def __init__(self, size: int) -> None:
        self._prefix: deque[int] = deque(maxlen=size - 1)
        self._needed = size - 1
        self._table: dict[tuple[int, ...], list[int]] = {}

    def read(self, tokens: Iterable[int]) -> None:
        """Takes the next tokens of the text."""
        for token in tokens:
            if len(self._prefix) == self._needed:
                self._table.setdefault(tuple(self._prefix), []).append(token)
            self._prefix.append(token)

    def ban(self, prefix: tuple[int, ...], scores: Scores) -> None:
        """Bans what has followed `prefix`."""
        for token in self._table.get(prefix, ()):
            if token < len(scores):
                scores[token] = -np.inf


class NoRepeatedNgrams:
    """No n-gram of `size` tokens comes twice in a row's text, the prompt included."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._unread = UnreadTokens()
        self._followers = _Followers(size)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        self._followers.read(self._unread.of(row))
        if row.length >= self._size:
            self._followers.ban(row.tail(self._size - 1), scores)


class NoSourceNgrams:
    """No n-gram of the source comes in the generated text. Without an encoder the source is the prompt."""

    def __init__(self, size: int, source: Sequence[int]) -> None:
        self._size = size
        self._followers = _Followers(size)
        self._followers.read(source)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        if row.length >= self._size - 1:
            self._followers.ban(row.tail(self._size - 1), scores)
