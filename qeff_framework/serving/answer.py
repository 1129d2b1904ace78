"""What a request gives back while it runs: pieces of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qeff_framework.generation.rows import FinishReason
from qeff_framework.generation.streaming import Detokenizer
from qeff_framework.tokenization.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of one generated token, from the program's logits before any rule or temperature."""

    token: int
    logprob: float
    #: The most likely tokens with their log-probabilities, the most likely one first.
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What one step has added to one answer of a request."""

    #: Number of the answer, from 0 to ``n - 1``.
    index: int
    #: New tokens; empty in the last piece of an answer that ended without one (cancelled, timed out).
    tokens: tuple[int, ...]
    #: Text that is settled. It lags behind the tokens while a character or a possible stop string is incomplete.
    text: str
    #: Set on the last piece of an answer.
    finish_reason: FinishReason | None
    #: One entry for each token; empty unless asked for.
    logprobs: tuple[TokenLogprobs, ...] = ()


class AnswerText:
    """Text of one answer, piece by piece, without the stop string that ends it."""

    def __init__(self, tokenizer: TextTokenizer | None, stop_strings: Sequence[str]) -> None:
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._stop_strings = stop_strings
        #: Characters at the end that may be the beginning of a stop string.
        self._held_back = max(map(len, stop_strings), default=1) - 1
        self._pending = ""

    def put(self, tokens: Sequence[int], finish_reason: FinishReason | None) -> str:
        """The text that `tokens` settle; all that is left where `finish_reason` ends the answer."""
        if self._detokenizer is None:
            return ""
        text = self._pending + "".join(map(self._detokenizer.put, tokens))
        if finish_reason is None:
            shown = max(len(text) - self._held_back, 0)
            self._pending = text[shown:]
            return text[:shown]
        text += self._detokenizer.finish()
        if finish_reason == "stop_string":
            # A stop string that begins in the prompt is not in this text.
            places = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
            text = text[: min(places, default=len(text))]
        return text
