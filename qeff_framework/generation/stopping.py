"""When a row ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from qeff_framework.errors import InputError
from qeff_framework.generation.history import TokenHistory
from qeff_framework.generation.rows import FinishReason, Row
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.streaming import Detokenizer
from qeff_framework.tokenization.tokenizer import TextTokenizer


class StopRules:
    """Tells after each token whether its row has ended, and why.

    `criteria` are Transformers' stopping criteria; they see one row at a time, as ``[1, length]`` ids, and no scores.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        *,
        tokenizer: TextTokenizer | None = None,
        criteria: Sequence[Any] | None = None,
    ) -> None:
        self._eos = frozenset(settings.eos_token_ids)
        self._max_time = settings.max_time
        self._deadline: float | None = None
        self._history = TokenHistory()
        self._criteria = list(criteria or ())
        self._texts = _texts(settings.stop_strings, tokenizer, rows)

    def begin(self) -> None:
        """Starts the clock of `max_time`."""
        self._deadline = None if self._max_time is None else time.perf_counter() + self._max_time

    def reason(self, row: Row, token: int) -> FinishReason | None:
        """Why `row` ends with `token`, which it has already taken; `None` when it goes on."""
        if token in self._eos:
            return "eos"
        if self._texts and self._texts[row.index].ends(token):
            return "stop_string"
        if self._criteria and self._criterion_met(row):
            return "stopping_criteria"
        if len(row.generated) >= row.limit:
            return "length"
        if self._deadline is not None and time.perf_counter() > self._deadline:
            return "max_time"
        return None

    def forget(self, row: Row) -> None:
        """Gives back what is kept for a row, which has finished."""
        self._history.forget(row)

    def _criterion_met(self, row: Row) -> bool:
        ids = self._history.ids(row)
        # Every criterion is asked, also after one has said yes: some of them count.
        verdicts = [_verdict(criterion, ids) for criterion in self._criteria]
        return any(verdicts)


def _verdict(criterion: Any, ids: Any) -> bool:
    """What a criterion says: `True` or `False`, or one of them in an array or tensor of one value."""
    said = criterion(ids, None)
    if (
        not isinstance(said, (bool, int))
        and getattr(said, "size", None) != 1
        and getattr(said, "shape", None) not in ((), (1,))
    ):
        raise InputError(
            f"a stopping criterion ({type(criterion).__name__}) returned {said!r:.80} for one row; it returns True or False, or "
            "a tensor of one such value"
        )
    return bool(said)


#: Tokens of the prompt that the first generated one is decoded behind: its text may depend on its neighbours.
_CONTEXT_TOKENS = 8


class _StopText:
    """Looks for stop strings that end in the newest token of a row; they may begin in its prompt, as in Transformers."""

    def __init__(self, stop_strings: Sequence[str], tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._stop_strings = stop_strings
        # Stop strings are often special tokens (the end of a chat turn), as in Transformers.
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
        #: A stop string may begin in text that is already there, by at most this much.
        self._overlap = max(map(len, stop_strings)) - 1
        self._tail = ""
        for token in prompt[-(self._overlap + _CONTEXT_TOKENS) :]:
            self._put(token)

    def ends(self, token: int) -> bool:
        before = len(self._tail)
        text = self._put(token)
        return any(text.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in self._stop_strings)

    def _put(self, token: int) -> str:
        text = self._tail + self._detokenizer.put(token)
        self._tail = text[-self._overlap :] if self._overlap else ""
        return text


def _texts(stop_strings: Sequence[str], tokenizer: TextTokenizer | None, rows: Sequence[Row]) -> list[_StopText]:
    if not stop_strings:
        return []
    if tokenizer is None:
        raise InputError(
            "stop_strings need a tokenizer; pass tokenizer=..., or stop_strings=None and eos_token_id=[...] to end rows by token"
        )
    if not all(stop_strings):
        raise InputError("stop_strings holds an empty string, which would end every row at once; leave it out")
    return [_StopText(stop_strings, tokenizer, row.prompt) for row in rows]
