"""Draft tokens from a smaller program: it decodes ahead of the target, which checks all of its tokens in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.rows import Row
from qeff_framework.generation.sampling import unusable_logits
from qeff_framework.generation.step_inputs import StepInputs, fitting
from qeff_framework.session_use import use_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAD = 0


@dataclass(slots=True, kw_only=True)
class _Lane:
    """What a lane of the draft program has read of a row: the first `read` tokens of its text, and `drafts` behind them."""

    row: Row
    read: int = 0
    drafts: Sequence[int] = ()

    def known(self) -> int:
        """Tokens of the row's text, as it is now, that are in the cache. The last token must be run again for its logits."""
        text, known = self.row, self.read
        for draft in self.drafts:
            place = known - len(text.prompt)
            if known >= text.length or place < 0 or text.generated[place] != draft:
                break
            known += 1
        return min(known, text.length - 1)


class DraftModel:
    """Decodes greedily for the rows of one scheduler, each in the lane that it has in the target.

    What it proposes has no influence on the tokens, only on the number of the target's steps. It takes the session over: a
    text that somebody else has begun there cannot go on.

    Raises `InputError` for a program that cannot decode ahead of the target.
    """

    def __init__(self, session: ExecutionSession, target: ProgramShape) -> None:
        shape = ProgramShape.of(session.compiled)
        wrong = next((reason for holds, reason in _obstacles(shape, target) if holds), None)
        if wrong is not None:
            raise InputError(f"the draft model cannot be used: {wrong}")
        self._session = session
        self._use = use_of(session)
        self._shape = shape
        self._prefills = [StepInputs(shape, step) for step in shape.prefills]
        self._decode = StepInputs(shape, shape.decode)
        self._lanes: dict[int, _Lane] = {}
        self.reset()
        #: Tokens that the target does not know cannot be drafts.
        self._vocab_size = target.vocab_size

    def reset(self) -> None:
        """Forgets all rows, also after a step that failed."""
        with self._use.turn:
            self._use.take(self)
            self._lanes.clear()
            self._session.reset()

    def draft(self, counts: Sequence[tuple[Row, int]]) -> dict[int, list[int]]:
        """At most so many tokens that may follow each row's text, by the row's lane."""
        with self._use.turn:
            if not self._use.is_held_by(self):
                self.reset()
            return self._drafts(counts)

    def _drafts(self, counts: Sequence[tuple[Row, int]]) -> dict[int, list[int]]:
        drafts: dict[int, list[int]] = {row.lane: [] for row, _ in counts}
        # The last draft is not run, so that it may stand behind the context.
        wanted = {row.lane: min(count, self._shape.ctx_len - row.length + 1) for row, count in counts}
        rows = {row.lane: row for row, _ in counts if wanted[row.lane] > 0}
        if not rows:
            return drafts
        feed = {lane: self._unread(row) for lane, row in rows.items()}
        starts = {lane: row.length - len(feed[lane]) for lane, row in rows.items()}
        while feed:
            for lane, token in self._step(feed, starts).items():
                if self._vocab_size is not None and token >= self._vocab_size:
                    wanted[lane] = 0
                    continue
                drafts[lane].append(token)
                if len(drafts[lane]) < wanted[lane]:
                    feed[lane] = [token]
        for lane, row in rows.items():
            self._lanes[lane] = _Lane(row=row, read=row.length, drafts=drafts[lane][:-1])
        return drafts

    def _unread(self, row: Row) -> list[int]:
        held = self._lanes.get(row.lane)
        start = held.known() if held is not None and held.row is row else 0
        answer = len(row.prompt)
        unread = [*row.prompt[start:], *row.generated[max(start - answer, 0) :]]
        known = self._shape.vocab_size
        # A table for fewer tokens than the target's has no row for the others, and what it proposes is checked anyway.
        return unread if known is None else [token if token < known else _PAD for token in unread]

    def _step(self, feed: dict[int, list[int]], starts: dict[int, int]) -> Mapping[int, int]:
        """Runs the next tokens of each lane, and takes them from `feed`; returns the tokens that follow complete texts."""
        reach = max(starts[lane] + len(tokens) for lane, tokens in feed.items())
        longest = max(map(len, feed.values()))
        is_decode = longest == 1 or reach > self._shape.longest_prompt
        inputs = self._decode if is_decode else fitting(self._prefills, longest)
        inputs.clear(_PAD)
        for lane, tokens in feed.items():
            inputs.place(lane, tokens[: inputs.shape.width], starts[lane])
        outputs: Mapping[str, NDArray[Any]] = self._session.run(inputs.feed)
        logits = outputs["logits"]
        following: dict[int, int] = {}
        for lane in [*feed]:
            starts[lane] += min(len(feed[lane]), inputs.shape.width)
            feed[lane] = feed[lane][inputs.shape.width :]
            if not feed[lane]:
                del feed[lane]
                following[lane] = int(np.argmax(logits[lane, -1]))
                largest = logits[lane, -1, following[lane]]
                if not np.isfinite(largest):
                    raise unusable_logits("the draft model", largest)
        return following


def _obstacles(shape: ProgramShape, target: ProgramShape) -> Sequence[tuple[bool, str]]:
    return (
        (shape.has_encoder, "it is an encoder-decoder; give a causal language model"),
        (shape.candidates is not None, "it returns tokens instead of logits; compile it without include_sampler"),
        (shape.slots is not None, f"it batches continuously; compile it with batch_size={target.batch_size} instead"),
        (
            shape.batch_size < target.batch_size,
            f"it has {shape.batch_size} rows; compile it with batch_size={target.batch_size}, as the target",
        ),
        (
            bool(shape.image_inputs) or not shape.rewinds,
            "wrong drafts cannot be taken back: give a model of keys and values only, compiled with num_speculative_tokens=0",
        ),
        (
            bool(shape.reread_lengths) or "prompt_lengths" in shape.extra_inputs,
            "its rotary frequencies depend on the length of the text",
        ),
    )
