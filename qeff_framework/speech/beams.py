"""Beam search for windows of sound: the rows of a window continue the likeliest of all their texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.generation.beams import BeamSearch
from qeff_framework.generation.rows import Row, Step
from qeff_framework.generation.scores import ScoreRule
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.stopping import StopRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Windows are no requests of a scheduler.
_NO_REQUEST: Any = None


class SpeechBeams(BeamSearch):
    """With rules that no setting asks for; sums up how likely the tokens of each text are.

    Args:
        settings: beams, length penalty, and the rules for the log-probabilities.
        rows: `num_beams` for each window, one behind the other; their numbers count from 0.
        further: makes the rules for one row that come behind those of the settings.
    """

    def __init__(
        self, settings: GenerationSettings, rows: Sequence[Row], further: Callable[[], Sequence[ScoreRule]]
    ) -> None:
        for row in rows:
            row.request = _NO_REQUEST
        super().__init__(settings, rows, StopRules(settings, rows))
        self._further = further
        self._beams = settings.num_beams
        self._windows = len(rows) // settings.num_beams
        #: Of a step: the scores ``[V]`` behind a text, by its window.
        self._scores: dict[tuple[int, tuple[int, ...]], NDArray[np.float32]] = {}
        #: Sums of the log-probabilities of texts, by their windows.
        self._sums: dict[tuple[int, tuple[int, ...]], float] = {(number, ()): 0.0 for number in range(self._windows)}

    def take(self, logits: NDArray[Any], rows: Sequence[Row]) -> list[Step]:
        """Continues the searches of `rows`."""
        self._scores.clear()
        steps = super().take(logits, rows)
        for number in dict.fromkeys(row.index // self._beams for row in rows):
            search = self._searches[number]
            for tokens in (*(row.generated for row in search.rows), *(text.tokens for text in search.best)):
                text, before = (number, (*tokens,)), (number, (*tokens[:-1],))
                if text not in self._sums and before in self._scores:
                    self._sums[text] = self._sums[before] + log_probability(self._scores[before], tokens[-1])
        return steps

    def best_texts(self) -> list[tuple[list[int], float]]:
        """Of each window: the tokens of the best text, and their mean log-probability."""
        found = []
        for number in range(self._windows):
            tokens = self.results[number * self._settings.num_return_sequences].generated
            found.append((tokens, self._sums[number, (*tokens,)] / max(len(tokens), 1)))
        return found

    def _log_probabilities(self, logits: NDArray[Any], row: Row) -> NDArray[np.float32]:
        scores = super()._log_probabilities(logits, row)
        with np.errstate(all="ignore"):
            for rule in self._further():
                rule(row, scores)
        self._scores[row.index // self._beams, (*row.generated,)] = scores
        return scores


def log_probability(scores: NDArray[np.float32], token: int) -> float:
    """Of `token` by scores ``[V]``."""
    best = scores.max()
    return float(scores[token] - best - np.log(np.exp(scores - best).sum()))
