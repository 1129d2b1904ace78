"""Log-probabilities of generated tokens, recorded while the tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.generation.rows import Row
from qeff_framework.generation.sampling import TokenSelector
from qeff_framework.serving.answer import TokenLogprobs

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LogprobRecorder:
    """Implements `TokenSelector` over another selector; keeps the log-probabilities of what that one chooses."""

    def __init__(self, selector: TokenSelector, top: int) -> None:
        self._selector = selector
        self._top = top
        self._recorded: dict[int, list[TokenLogprobs]] = {}

    def __call__(self, logits: NDArray[Any], rows: Sequence[Row], /) -> list[int]:
        """See `TokenSelector`."""
        tokens = self._selector(logits, rows)
        for row, token in zip(rows, tokens, strict=True):
            self._recorded.setdefault(row.index, []).append(self._logprobs(logits[row.lane], token))
        return tokens

    def forget(self, row: Row, /) -> None:
        """See `TokenSelector`."""
        self._selector.forget(row)

    def take(self, index: int) -> tuple[TokenLogprobs, ...]:
        """The entries of a row that were recorded since the last call."""
        return tuple(self._recorded.pop(index, ()))

    def _logprobs(self, logits: NDArray[Any], token: int) -> TokenLogprobs:
        scores = logits.astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        count = min(self._top, len(scores))
        best = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
        best = best[np.argsort(-scores[best], kind="stable")]
        return TokenLogprobs(
            token=token, logprob=float(scores[token]), top=tuple((int(index), float(scores[index])) for index in best)
        )
