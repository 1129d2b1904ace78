"""What all rules have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qeff_framework.generation.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]


class ScoreRule(Protocol):
    """Changes the scores of a row's next token. One object serves one row, for one generation."""

    def __call__(self, row: Row, scores: Scores, /) -> None:
        """Changes `scores` ``[V]`` in place, once for each token that `row` gets."""


class UnreadTokens:
    """Hands out every token of a row once: the prompt first, then what was generated since the last call."""

    def __init__(self) -> None:
        self._count = -1

    def of(self, row: Row) -> Iterator[int]:
        """The tokens that no earlier call has returned."""
        if self._count < 0:
            self._count = 0
            yield from row.prompt
        while self._count < len(row.generated):
            self._count += 1
            yield row.generated[self._count - 1]


def known_ids(ids: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """Those of `ids` that have a score."""
    return np.array(sorted({int(token) for token in ids if 0 <= token < vocab_size}), dtype=np.int64)
