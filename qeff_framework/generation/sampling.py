"""Choosing the next token from the logits: the most likely one, or a sample, after the rules that the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation.grammar import Grammar
from qeff_framework.generation.history import TokenHistory
from qeff_framework.generation.randomness import generator_of, seed_of
from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores import ScoreRule, build_rules
from qeff_framework.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INFINITY = float("inf")


class TokenSelector(Protocol):
    """Picks one token for each of the given rows."""

    def __call__(self, logits: NDArray[Any], rows: Sequence[Row], /) -> list[int]:
        """`logits` is ``[B, V]``; entry i of the result is the token of ``rows[i]``, from the logits row ``rows[i].lane``."""

    def forget(self, row: Row, /) -> None:
        """Gives back what is kept for a row, which has finished."""


class GreedySelector:
    """The most likely token; of equal ones the first, as ``torch.argmax`` on the CPU."""

    def __call__(self, logits: NDArray[Any], rows: Sequence[Row]) -> list[int]:
        """See `TokenSelector`."""
        tokens = []
        for row in rows:
            scores = logits[row.lane]
            token = int(scores.argmax())
            # argmax takes a NaN for the greatest number, so looking at the winner finds any NaN in the row. Functions of NumPy
            # on single numbers take microseconds of each token.
            if not -_INFINITY < scores[token] < _INFINITY:
                raise unusable_logits(f"prompt {row.index} at position {row.position}", scores[token])
            tokens.append(token)
        return tokens

    def forget(self, row: Row) -> None:
        """Nothing is kept."""


class RuledSelector:
    """Applies the rules of `settings`, and the caller's processors, then takes the most likely token or draws one.

    Rules serve one row each, so that what a row generates does not depend on the others. The caller's processors are one set for
    all rows: with several prompts they must not keep state between calls. Each row draws from its own generator, derived from
    the seed and its index.

    Raises `InputError` and `OptionError` for rules that cannot be applied, before the first step where `vocab_size` is known.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        custom: Sequence[Any] | None = None,
        *,
        vocab_size: int | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        self._settings = settings
        self._custom = list(custom or ())
        self._grammar = grammar
        self._history = TokenHistory()
        #: Rules of the rows that are at work.
        self._rules: dict[int, list[ScoreRule]] = {}
        self._seed = seed_of(settings) if settings.do_sample else 0
        self._generators: dict[int, np.random.Generator] = {}
        #: ``[V]``, for one row after the other.
        self._scores = np.zeros(vocab_size or 0, dtype=np.float32)
        if vocab_size is not None and rows:
            self._rules[rows[0].index] = self._build(rows[0], vocab_size)

    def __call__(self, logits: NDArray[Any], rows: Sequence[Row]) -> list[int]:
        """See `TokenSelector`."""
        return [self._select(logits[row.lane], row) for row in rows]

    def forget(self, row: Row) -> None:
        """See `TokenSelector`."""
        self._rules.pop(row.index, None)
        self._generators.pop(row.index, None)
        self._history.forget(row)

    def _build(self, row: Row, vocab_size: int) -> list[ScoreRule]:
        return build_rules(
            self._settings,
            row,
            vocab_size,
            custom=self._custom,
            history=self._history,
            grammar=self._grammar,
            further=self._further(),
        )

    def _further(self) -> Sequence[ScoreRule]:
        """Rules for one row that no setting asks for."""
        return ()

    def _select(self, logits: NDArray[Any], row: Row) -> int:
        if len(self._scores) != len(logits):
            self._scores = np.zeros(len(logits), dtype=np.float32)
            self._rules.clear()
        scores = self._scores
        scores[:] = logits
        # The greatest of numbers among which one is NaN is NaN.
        largest = scores.max()
        if not -_INFINITY < largest < _INFINITY and not self._settings.remove_invalid_values:
            raise unusable_logits(f"prompt {row.index} at position {row.position}", largest)
        if row.index not in self._rules:
            self._rules[row.index] = self._build(row, len(scores))
        # Scores of removed tokens are -inf, and arithmetic with them is meant.
        with np.errstate(all="ignore"):
            for rule in self._rules[row.index]:
                rule(row, scores)
            token = int(scores.argmax())
            best = scores[token]
            if np.isneginf(best):
                raise InputError(
                    f"the logits processors left prompt {row.index} no token to choose from: all scores are -inf "
                    f"({self._asked()})"
                )
            if np.isnan(best):
                raise ExecutionError(
                    f"the scores of prompt {row.index} contain NaN after {self._asked()}; compare them with Transformers"
                )
            return self._draw(scores, row) if self._settings.do_sample else token

    def _draw(self, scores: NDArray[np.float32], row: Row) -> int:
        """A token by the probabilities that `scores` ``[V]`` stand for."""
        if row.index not in self._generators:
            self._generators[row.index] = generator_of(self._seed, row.index)
        weights = np.exp(scores - scores.max())
        sums = np.cumsum(weights, dtype=np.float64)
        if not np.isfinite(sums[-1]):
            raise ExecutionError(
                f"the scores of prompt {row.index} are infinite after {self._asked()}, so that nothing can be drawn; compare "
                "them with Transformers"
            )
        token = int(np.searchsorted(sums, self._generators[row.index].random() * sums[-1], side="right"))
        # Rounding may lead behind the last token that has a probability.
        return token if token < len(weights) else int(np.flatnonzero(weights)[-1])

    def _asked(self) -> str:
        return ", ".join([*self._settings.score_settings, *(["logits_processor"] if self._custom else [])])


def unusable_logits(of: str, largest: float) -> ExecutionError:
    """The error for logits of which the largest is NaN or infinite: whatever token they lead to, they do not say it.

    `of` names text and place.
    """
    held = "contain NaN" if largest != largest else "contain infinity" if largest > 0 else "are all -inf"
    return ExecutionError(
        f"the logits of {of} {held}: the program overflowed or read a bad cache, or the checkpoint's weights hold such numbers; "
        "compare it with PyTorch, compile with a wider data type, or let it pass with remove_invalid_values=True"
    )
