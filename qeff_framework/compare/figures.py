"""What two sets of logits have in common, and what not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]


@dataclass(kw_only=True)
class Figures:
    """Figures over predicted tokens. `add` takes more of them."""

    tokens: int = 0
    #: Tokens for which both have the same best one.
    agreeing: int = 0
    #: Largest difference of a logit, and the mean over all logits.
    max_error: float = 0.0
    #: KL divergence of the program's distribution from the reference's, in nats, by token.
    divergences: list[float] = field(default_factory=list)
    _error_sum: float = 0.0
    _errors: int = 0
    _reference_loss: float = 0.0
    _program_loss: float = 0.0

    def add(self, reference: Logits, program: Logits, following: Sequence[int]) -> NDArray[np.bool_]:
        """Takes logits ``[T, V]`` of both, and the token that follows each. Says where the best tokens agree, ``[T]``.

        A logit that is no number in either of them counts as an infinite error and divergence, and as no agreement.
        """
        same: NDArray[np.bool_] = reference.argmax(-1) == program.argmax(-1)
        for left, right, token in zip(reference, program, following, strict=True):
            self._add(left.astype(np.float64), right.astype(np.float64), token)
        same &= ~(_broken(program) | _broken(reference)).any(-1)
        self.tokens += len(following)
        self.agreeing += int(same.sum())
        return same

    def _add(self, reference: NDArray[np.float64], program: NDArray[np.float64], token: int) -> None:
        self._errors += len(reference)
        if _broken(program).any() or _broken(reference).any():
            self.max_error = self._error_sum = math.inf
            self.divergences.append(math.inf)
            self._reference_loss += _loss(reference, token)
            self._program_loss += _loss(program, token)
            return
        # Tokens that both exclude have no error.
        known = np.isfinite(reference) | np.isfinite(program)
        errors = np.abs(reference[known] - program[known])
        self.max_error = max(self.max_error, float(errors.max()))
        self._error_sum += float(errors.sum())
        left, right = _log_softmax(reference), _log_softmax(program)
        likely = np.isfinite(left)
        divergence = float((np.exp(left[likely]) * (left[likely] - right[likely])).sum())
        self.divergences.append(max(0.0, divergence))  # below zero by rounding alone
        self._reference_loss -= float(left[token])
        self._program_loss -= float(right[token])

    @property
    def agreement(self) -> float:
        """Share of the tokens for which both have the same best one."""
        return self.agreeing / self.tokens if self.tokens else 1.0

    @property
    def mean_error(self) -> float:
        """Mean difference of a logit."""
        return self._error_sum / self._errors if self._errors else 0.0

    @property
    def mean_kl(self) -> float:
        """Mean KL divergence in nats."""
        return sum(self.divergences) / len(self.divergences) if self.divergences else 0.0

    @property
    def max_kl(self) -> float:
        """Largest KL divergence of a token in nats."""
        return max(self.divergences, default=0.0)

    @property
    def reference_perplexity(self) -> float:
        """Perplexity of the tokens by the reference."""
        return _perplexity(self._reference_loss, self.tokens)

    @property
    def program_perplexity(self) -> float:
        """Perplexity of the tokens by the program."""
        return _perplexity(self._program_loss, self.tokens)


@dataclass(kw_only=True)
class LayerError:
    """How far what a layer has stored is from the reference, relative to the size of the reference (root of the mean square).

    What is no number is infinitely far.
    """

    layer: int
    _squares: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, what: str, reference: Logits, program: Logits) -> None:
        """Takes numbers of both in one shape; `what` is ``"keys"`` or ``"values"``."""
        error, size = self._squares.get(what, (0.0, 0.0))
        if not np.isfinite(program).all():
            error = math.inf
            program = np.zeros_like(reference)
        difference = program.astype(np.float64) - reference
        self._squares[what] = (
            error + float((difference**2).sum()),
            size + float((reference.astype(np.float64) ** 2).sum()),
        )

    def __getitem__(self, what: str) -> float | None:
        """The relative error; `None` when nothing was taken."""
        if what not in self._squares:
            return None
        error, size = self._squares[what]
        return math.sqrt(error / size) if size else (0.0 if error == 0 else math.inf)

    @property
    def largest(self) -> float:
        """The larger one of keys and values."""
        return max((self[what] or 0.0 for what in self._squares), default=0.0)


def entering_layer(layers: Sequence[LayerError]) -> LayerError | None:
    """The layer at which the error grows most, measured by the square: independent errors add up so. `None` without an error."""
    best, most, before = None, 0.0, 0.0
    for layer in layers:
        # Infinite behind infinite is no growth.
        growth = 0.0 if math.isinf(before) else layer.largest**2 - before
        if growth > most:
            best, most = layer, growth
        before = layer.largest**2
    return best


def _loss(logits: NDArray[np.float64], token: int) -> float:
    return math.inf if _broken(logits).any() else -float(_log_softmax(logits)[token])


def _broken(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Which logits are none. Minus infinity is one: it excludes a token."""
    broken: NDArray[np.bool_] = np.isnan(logits) | np.isposinf(logits)
    return broken


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _perplexity(loss: float, tokens: int) -> float:
    if not tokens:
        return 1.0
    try:
        return math.exp(loss / tokens)
    except OverflowError:
        return math.inf
