"""The rule that makes time stamps come in pairs and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.generation.rows import Row
from qeff_framework.speech.start_tokens import SpeechFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Timestamps:
    """Changes the scores of one row as Transformers' processor for Whisper's time stamps does."""

    def __init__(self, facts: SpeechFacts, begin: int, end_of_text: int) -> None:
        #: The token of the time 0; greater ones are later times.
        self._begin = begin
        self._end_of_text = end_of_text
        self._latest_first = facts.max_initial_timestamp_index

    def __call__(self, row: Row, scores: NDArray[Any]) -> None:
        """Removes from ``scores [V]``, in place, what must not come next."""
        begin, answer = self._begin, row.generated
        scores[begin - 1] = -np.inf
        ends_in_time = len(answer) >= 1 and answer[-1] >= begin
        pair_is_complete = len(answer) < 2 or answer[-2] >= begin
        if ends_in_time and pair_is_complete:
            scores[begin:] = -np.inf
        elif ends_in_time:
            scores[: self._end_of_text] = -np.inf
        times = [token for token in answer if token >= begin]
        if times:
            earliest = times[-1] if ends_in_time and not pair_is_complete else times[-1] + 1
            scores[begin:earliest] = -np.inf
        if not answer:
            scores[:begin] = -np.inf
            if self._latest_first is not None:
                scores[begin + self._latest_first + 1 :] = -np.inf
        # A time stamp comes where all of them together are more likely than any single token of text.
        best = scores.max()
        if np.isfinite(best) and np.exp(scores[begin:] - best).sum() > np.exp(scores[:begin].max() - best):
            scores[:begin] = -np.inf
