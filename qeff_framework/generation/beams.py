"""Beam search: each prompt has several rows, and continues with the most likely texts among all continuations of all of them.

Texts, their order and the end of the search are those of Transformers' ``generate(num_beams=...)``. After a step, rows continue
texts of other rows; the scheduler gives them the states of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.generation.grammar import Grammar
from qeff_framework.generation.history import TokenHistory
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.rows import FinishReason, Row, Step
from qeff_framework.generation.sampling import unusable_logits
from qeff_framework.generation.scores import build_rules
from qeff_framework.generation.scores.normalizing import log_softmax
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.stopping import StopRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Takes a text out of the competition, in float32 as in Transformers.
_NEVER = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class _Text:
    """A continuation of the prompt; `reason` tells why it ends."""

    tokens: list[int]
    reason: FinishReason | None


class BeamSearch:
    """The beams of a request: `num_beams` rows for each prompt, one behind the other, which always have equal lengths.

    Args:
        settings: beams, length penalty, and the rules for the log-probabilities.
        rows: all rows of the request.
        rules: which texts are complete.
        custom: the caller's processors; they must not keep state between calls.
        grammar: what the answers must look like.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        rules: StopRules,
        *,
        custom: Sequence[Any] | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._custom = list(custom or ())
        self._grammar = grammar
        count = settings.num_beams
        self._searches = [
            _Search(settings, rows[start : start + count], self._reason) for start in range(0, len(rows), count)
        ]
        #: The answers, `num_return_sequences` for each prompt, the best one first; those of searches that have ended.
        self.results: dict[int, Row] = {}
        #: Of the last step, by lane: the lane whose text its row continues. Empty where all rows continue their own.
        self.moves: dict[int, int] = {}

    def take(self, logits: NDArray[Any], rows: Sequence[Row]) -> list[Step]:
        """Continues the searches of `rows` with the logits ``[B, V]``; returns the answers of those that have ended."""
        self.moves = {}
        steps: list[Step] = []
        for number in dict.fromkeys(row.index // self._settings.num_beams for row in rows):
            search = self._searches[number]
            scores = np.stack([self._log_probabilities(logits[row.lane], row) for row in search.rows])
            sources = search.advance(scores)
            if search.ended:
                steps += self._answers(number, search)
                continue
            lanes = [row.lane for row in search.rows]
            self.moves |= {
                lane: lanes[source] for lane, source in zip(lanes, sources, strict=True) if lane != lanes[source]
            }
        return steps

    def _log_probabilities(self, logits: NDArray[Any], row: Row) -> NDArray[np.float32]:
        scores = np.asarray(logits, dtype=np.float32)
        largest = scores.max()
        if not np.isfinite(largest) and not self._settings.remove_invalid_values:
            raise unusable_logits(f"prompt {row.index // self._settings.num_beams} at position {row.position}", largest)
        scores = log_softmax(scores)
        # The row's text may be another one than a step ago, so that rules read it from its beginning.
        rules = build_rules(
            self._settings, row, len(scores), custom=self._custom, history=TokenHistory(), grammar=self._grammar
        )
        with np.errstate(all="ignore"):
            for rule in rules:
                rule(row, scores)
        return scores

    def _reason(self, row: Row, tokens: list[int]) -> FinishReason | None:
        text = Row(index=row.index, prompt=row.prompt, limit=row.limit, generated=tokens)
        reason = self._rules.reason(text, tokens[-1])
        self._rules.forget(text)
        return reason

    def _answers(self, number: int, search: _Search) -> list[Step]:
        count, first = self._settings.num_return_sequences, search.rows[0]
        steps: list[Step] = []
        for place, text in enumerate(search.best[:count]):
            index = number * count + place
            row = Row(index=index, prompt=first.prompt, source=first.source, limit=first.limit, generated=text.tokens)
            row.finish_reason = text.reason or "length"
            row.request = first.request
            self.results[index] = row
            steps += [Step(index, token, None, row.request) for token in text.tokens[:-1]]
            steps.append(Step(index, text.tokens[-1], row.finish_reason, row.request))
        for row in search.rows:
            row.finish_reason = search.best[0].reason or "length"
        return steps


class _Search:
    """The search for one prompt."""

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        reason: Callable[[Row, list[int]], FinishReason | None],
    ) -> None:
        self.rows = rows
        self.ended = False
        #: Complete texts by their scores; while there are fewer than beams, others fill the list.
        self.best: list[_Text] = []
        self._settings = settings
        self._reason = reason
        count = settings.num_beams
        # Enough continuations that a beam is left for each text that ends.
        self._candidates = max(2, 1 + len(settings.eos_token_ids)) * count
        # In the first step all rows have one text, which counts once.
        self._scores = np.full(count, _NEVER)
        self._scores[0] = 0
        self._best_scores = np.full(count, _NEVER)
        self._complete = np.zeros(count, dtype=np.bool_)
        self._can_improve = True

    def advance(self, log_probabilities: NDArray[np.float32]) -> list[int]:
        """Gives each row its next text; returns the numbers of the rows that these continue.

        `log_probabilities` are ``[num_beams, V]``, behind the rules.
        """
        settings, count = self._settings, self._settings.num_beams
        totals = (log_probabilities + self._scores[:, None]).reshape(-1)
        places = _greatest(totals, self._candidates)
        scores = totals[places]
        sources = [int(place) // log_probabilities.shape[1] for place in places]
        texts = [
            self._text(self.rows[source], int(place) % log_probabilities.shape[1])
            for source, place in zip(sources, places, strict=True)
        ]
        ends = np.array([text.reason is not None for text in texts])
        self._complete_texts(texts, scores, ends)

        running = scores + _where(ends)
        following = _greatest(running, count)
        self._scores = running[following]
        for row, place in zip(self.rows, following, strict=True):
            row.generated = texts[place].tokens
        self._can_improve = self._can_improve and self._may_improve(len(texts[0].tokens))
        is_full = bool(self._complete.all()) and settings.early_stopping is True
        self.ended = not self._can_improve or is_full or bool(ends.all())
        return [sources[place] for place in following]

    def _text(self, row: Row, token: int) -> _Text:
        tokens = [*row.generated, token]
        return _Text(tokens, self._reason(row, tokens))

    def _complete_texts(self, texts: list[_Text], scores: NDArray[np.float32], ends: NDArray[np.bool_]) -> None:
        """Merges the texts that end here into the best ones. Only the first `num_beams` continuations may."""
        count = self._settings.num_beams
        ended = ends & (np.arange(len(texts)) < count)
        final = scores / np.float32(len(texts[0].tokens) ** self._settings.length_penalty)
        if not self._can_improve or (self._complete.all() and self._settings.early_stopping is True):
            final = final + _NEVER
        final = final + _where(~ended)
        merged = np.concatenate([self._best_scores, final])
        known: list[_Text | None] = [*self.best, *[None] * (count - len(self.best))]
        all_texts = [*known, *texts]
        places = _greatest(merged, count)
        self._best_scores = merged[places]
        self._complete = np.concatenate([self._complete, ended])[places]
        self.best = [text for place in places if (text := all_texts[place]) is not None]

    def _may_improve(self, length: int) -> bool:
        """Whether Transformers expects that a running text can still become one of the best ones."""
        settings = self._settings
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = self.rows[0].limit
        reachable = self._scores[0] / np.float32(length**settings.length_penalty)
        worst = np.where(self._complete, self._best_scores.min(), _NEVER)
        return bool((reachable > worst).any())


def check_beams(count: int, settings: GenerationSettings, shape: ProgramShape, *, has_draft: bool) -> None:
    """Raises `InputError` for what beam search for `count` prompts cannot be combined with, or needs of the program."""
    beams = settings.num_beams
    wrong = next((reason for holds, reason in _obstacles(count, settings, shape, has_draft=has_draft) if holds), None)
    if wrong is not None:
        raise InputError(f"num_beams={beams}: {wrong}; num_beams=1 takes the most likely token at each step")


def _obstacles(
    count: int, settings: GenerationSettings, shape: ProgramShape, *, has_draft: bool
) -> Sequence[tuple[bool, str]]:
    rows = count * settings.num_beams
    return (
        (settings.do_sample, "beam search draws no samples; leave do_sample out"),
        (has_draft, "each row continues the text of another one, which drafts do not follow; leave the drafts out"),
        (bool(settings.stop_strings), "stop_strings are looked for in texts that go on; give stop_strings=None"),
        (settings.return_pdfs, "return_pdfs belongs to one text, not to several; leave it out"),
        (
            shape.candidates is not None,
            "the program chooses tokens on the device and returns no logits; compile it without include_sampler",
        ),
        (
            shape.slots is not None,
            f"rows of continuous batching come one after the other; compile with batch_size={rows} instead of full_batch_size",
        ),
        (
            rows > shape.batch_size,
            f"the search takes {rows} rows, the program computes {shape.batch_size} at once; compile with batch_size={rows}",
        ),
    )


def _where(excluded: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What is added to scores where texts take no part."""
    return np.where(excluded, _NEVER, np.float32(0)).astype(np.float32)


def _greatest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` greatest values, in descending order; of equal ones the first."""
    if len(values) > 8 * count:
        bound = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= bound)
    else:
        places = np.arange(len(values))
    chosen: NDArray[np.int64] = places[np.argsort(-values[places], kind="stable")[:count]]
    return chosen
