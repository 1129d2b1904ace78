"""Decoding a window again at a higher temperature, and windows without speech: the rules of Transformers' Whisper."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qeff_framework.errors import InputError
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.speech.decoder import Answer

#: Answers of a lower temperature are the context of the next window.
_HIGHEST_OF_CONTEXT = 0.5


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What an answer must not pass; `None` leaves a check out. Raises `InputError` for values that have no meaning."""

    #: Bytes of the token ids by those of the same compressed: a greater ratio tells of repetition.
    compression_ratio: float | None = None
    #: Mean log-probability of the tokens: an answer below it is not trusted.
    logprob: float | None = None
    #: Probability that nobody speaks: an untrusted answer above it is dropped.
    no_speech: float | None = None
    #: Of the model.
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("compression_ratio", "logprob", "no_speech"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
                raise InputError(f"{name}_threshold={value!r} must be a number, or None")
        if self.no_speech is not None and self.logprob is None:
            raise InputError(
                f"no_speech_threshold={self.no_speech} counts only for answers below logprob_threshold; give that as well"
            )

    def judge(self, answer: Answer) -> Literal["keep", "retry", "silence"]:
        """What becomes of an answer."""
        retry = (
            self.compression_ratio is not None
            and token_compression_ratio(answer.tokens, self.vocab_size) > self.compression_ratio
        )
        if self.logprob is not None and answer.avg_logprob < self.logprob:
            if self.no_speech is not None and answer.no_speech_prob > self.no_speech:
                return "silence"
            retry = True
        return "retry" if retry else "keep"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One temperature with the settings that it makes."""

    temperature: float
    settings: GenerationSettings

    @property
    def gives_context(self) -> bool:
        """An answer of this temperature is what the next window is conditioned on."""
        return self.temperature < _HIGHEST_OF_CONTEXT


def temperatures_of(given: Any) -> tuple[float, ...]:
    """`temperature` of ``generate`` as a tuple; `None` is 0. Raises `InputError` for others than numbers of at least 0."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    values = (*plain,) if isinstance(plain, Sequence) and not isinstance(plain, str) else (plain,)
    found = tuple(0.0 if value is None else value for value in values)
    is_number = [
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf for value in found
    ]
    if not found or not all(is_number):
        raise InputError(
            f"temperature={given!r} must be a number of at least 0 (0: the most likely tokens), or several of them for the "
            "attempts at a window, (0.0, 0.2, 0.4)"
        )
    return tuple(map(float, found))


def token_compression_ratio(tokens: Sequence[int], vocab_size: int) -> float:
    """Bytes of the token ids by the bytes of their zlib form."""
    width = int(math.log2(vocab_size) / 8) + 1
    return compression_ratio(b"".join(token.to_bytes(width, "little") for token in tokens))


def compression_ratio(content: bytes) -> float:
    """Bytes by the bytes of their zlib form."""
    return len(content) / len(zlib.compress(content))


def threshold_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The thresholds in a checkpoint's generation config."""
    names = ("compression_ratio", "logprob", "no_speech")
    return {name: generation.get(f"{name}_threshold") for name in names}
