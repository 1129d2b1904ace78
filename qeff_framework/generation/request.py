"""Prompts that came together, and what they share: settings, rules, random numbers, times."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qeff_framework.generation.beams import BeamSearch
from qeff_framework.generation.device_sampler import DeviceSampler
from qeff_framework.generation.drafting import Drafting
from qeff_framework.generation.output import PerfMetrics
from qeff_framework.generation.rows import FinishReason, Row, Step
from qeff_framework.generation.sampling import TokenSelector
from qeff_framework.generation.stopping import StopRules

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(kw_only=True, eq=False)
class Request:
    """The rows of one call of `generate`, or of one request to an engine, from the queue to their last tokens.

    What a row gets depends on its request alone, never on the requests that share its steps.
    """

    rows: list[Row]
    selector: TokenSelector
    rules: StopRules
    #: Any id that the embedding has: padding reaches neither the cache nor a result.
    pad: int
    sampler: DeviceSampler | None = None
    drafting: Drafting | None = None
    #: Chooses tokens instead of `selector`, where each prompt has several rows.
    beams: BeamSearch | None = None
    #: The rows keep the probabilities of their tokens.
    keeps_probabilities: bool = False
    #: What ended the request instead of its last token.
    error: Exception | None = None
    started: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    prefill_time: float = 0.0
    decode_steps: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            row.request = self
            row.may_share = self.sampler is None or not self.sampler.needs_own_marks

    @property
    def answers(self) -> list[Row]:
        """The rows that hold the answers: all of them, or those that beam search has chosen."""
        return self.rows if self.beams is None else [row for _, row in sorted(self.beams.results.items())]

    @property
    def finished(self) -> bool:
        """Whether no row takes any more tokens."""
        return all(row.finished for row in self.rows)

    def begin(self) -> None:
        """Starts the clocks."""
        self.started = self.last_token = time.perf_counter()
        self.rules.begin()

    def end(self, reason: FinishReason) -> None:
        """Ends the rows that have not finished."""
        for row in self.rows:
            if not row.finished:
                row.finish_reason = reason
                self._forget(row)

    def take(self, logits: NDArray[Any], rows: Sequence[Row], drafts: Mapping[int, Sequence[int]]) -> list[Step]:
        """Selects a token for each of the rows, and one more for each draft that was right.

        `logits` is ``[B, K, V]``; its last columns belong to a row's last token and its drafts. `drafts` are those of each lane.
        """
        steps: list[Step]
        if self.beams is not None:
            steps = self.beams.take(logits[:, -1], rows)
        elif not drafts:
            tokens = self.selector(logits[:, -1], rows)
            steps = [self._append(row, token) for row, token in zip(rows, tokens, strict=True)]
        else:
            steps = [step for row in rows for step in self._checked(logits, row, drafts.get(row.lane, ()))]
        self.last_token = time.perf_counter()
        if self.first_token is None:
            self.first_token = self.last_token
        return steps

    def metrics(self, note: str = "") -> PerfMetrics:
        """Times and rates up to now."""
        first = self.first_token if self.first_token is not None else self.started
        total = self.last_token - self.started
        decoding = total - self.prefill_time
        tokens = sum(len(row.generated) for row in self.rows)
        decoded = tokens - len(self.rows)
        return PerfMetrics(
            prefill_time=self.prefill_time,
            decode_perf=decoded / decoding if decoding > 0 else 0.0,
            total_perf=tokens / total if total > 0 else 0.0,
            total_time=total,
            decode_steps=self.decode_steps,
            time_to_first_token=first - self.started,
            note=note,
            drafts_proposed=self.drafts_proposed,
            drafts_accepted=self.drafts_accepted,
        )

    def _append(self, row: Row, token: int) -> Step:
        """Gives a row its next token, and says whether that was the last one."""
        row.generated.append(token)
        if self.drafting is not None:
            self.drafting.append(row, token)
        row.finish_reason = self.rules.reason(row, token)
        if row.finished:
            self._forget(row)
        return Step(row.index, token, row.finish_reason, self)

    def _forget(self, row: Row) -> None:
        self.selector.forget(row)
        self.rules.forget(row)

    def _checked(self, logits: NDArray[Any], row: Row, drafted: Sequence[int]) -> Iterator[Step]:
        """The row's next token, and those behind it as long as the drafts are what is chosen."""
        first = logits.shape[1] - 1 - len(drafted)
        for number in range(len(drafted) + 1):
            (token,) = self.selector(logits[:, first + number], [row])
            was_right = number < len(drafted) and token == drafted[number]
            yield self._append(row, token)
            if row.finished or not was_right:
                return
            self.drafts_accepted += 1
