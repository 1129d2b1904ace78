"""The scheduler: runs a language model's program step by step for requests that come and go.

The host's part of the contract: prompts go in as chunks of the compiled prefill length, then one token per step. Position -1
marks padding, which writes nothing to the cache; a row that has finished, or that was never used, is padding only. With a program
that returns several logits per step, a decode step also checks drafts, see `prompt_lookup`: each token is chosen as without them,
and drafts that differ are thrown away. What they have left in the cache lies behind the text, where the mask hides it until the
right tokens take its place. With an encoder, the prompts are what it reads in a row's first step, and the decoder starts with a
token of its own; in all other steps the encoder gets padding.

Rows join and leave at any step: a row whose tokens begin at position 0 begins with empty states, whatever another row has left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import PROBABILITIES, ExecutionSession
from qeff_framework.errors import ExecutionError
from qeff_framework.generation.drafting import drafts_of
from qeff_framework.generation.moved_states import move_states
from qeff_framework.generation.placement import Placement
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.request import Request
from qeff_framework.generation.rows import FinishReason, Row, Step
from qeff_framework.generation.step_inputs import StepInputs, fitting
from qeff_framework.images.rows import TOKEN_TYPES, RowImages
from qeff_framework.session_use import use_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Requests with their rows that take part in a step.
Groups = Sequence[tuple[Request, Sequence[Row]]]


class Scheduler:
    """Owns the cache of a session from `reset` until somebody else takes it. For one thread at a time."""

    def __init__(self, session: ExecutionSession, shape: ProgramShape) -> None:
        self._session = session
        self._use = use_of(session)
        self._shape = shape
        self._prefills = [StepInputs(shape, step) for step in shape.prefills]
        #: With slots, those of each width by their rows, ascending.
        self._of_rows: dict[int, list[StepInputs]] = {
            inputs.shape.width: [
                inputs,
                *(StepInputs(shape, s) for s in shape.more_rows if s.width == inputs.shape.width),
            ]
            for inputs in self._prefills
        }
        self._decodes = [StepInputs(shape, step) for step in shape.decodes]
        self._fewer = [StepInputs(shape, step) for step in shape.fewer_rows]
        self._image = None if shape.image_step is None else StepInputs(shape, shape.image_step)
        self._placement = self._empty_placement()
        self._pad = 0
        #: The rows of the last decode step, and the same by request.
        self._grouped: Sequence[Row] = ()
        self._groups: Groups = ()
        #: ``[B, 1, V]`` of the last step, where the program returns them. Valid until the next one.
        self._probabilities: NDArray[Any] | None = None
        #: Requests that have ended with an error since the caller emptied the list.
        self.failed: list[Request] = []
        #: The last step has fed a prompt, so that the rows that decode come next.
        self._decode_is_due = False

    @property
    def busy(self) -> bool:
        """There is something left to do."""
        return self._placement.busy

    @property
    def waiting(self) -> int:
        """Rows that wait for a place in the program."""
        return self._placement.waiting

    @property
    def running(self) -> int:
        """Rows that have a place in the program."""
        return self._placement.running

    def reset(self) -> None:
        """Drops all requests and empties the cache."""
        with self._use.turn:
            self._use.take(self)
            self._placement = self._empty_placement()
            self._decode_is_due = False
            self.failed.clear()
            self._session.reset()

    def add(self, request: Request, priority: int = 0) -> None:
        """Appends a request to the queue. A smaller `priority` comes first, and of equal ones the earlier request."""
        self._pad = request.pad
        request.begin()
        self._placement.add(request.rows, priority)

    def end(self, request: Request, reason: FinishReason) -> None:
        """Ends a request early. Its rows have no part in the next step."""
        request.end(reason)
        self._placement.drop_waiting()
        self._placement.release()

    def step(self) -> list[Step]:
        """Runs the program once; returns the tokens that it gave.

        A request whose tokens cannot be chosen ends with its `error`; the others go on. An error of the program itself is
        raised, and so is `ExecutionError` where the cache is somebody else's by now; only `reset` helps then.
        """
        with self._use.turn:
            self._use.check(self)
            return self._next_steps()

    def _next_steps(self) -> list[Step]:
        placement = self._placement
        if self._shape.reread_lengths and (grown := [row for row in placement.decoding if self._has_to_be_reread(row)]):
            placement.reread(grown)
        filling = placement.admit()
        if filling and not (self._decode_is_due and placement.decode_now):
            self._decode_is_due = True
            return self._prefill_step(filling)
        self._decode_is_due = False
        return self._decode_step(placement.decoding) if placement.decoding else []

    def _empty_placement(self) -> Placement:
        shape = self._shape
        return Placement(
            lanes=shape.batch_size,
            slots=shape.batch_size if shape.slots is None else shape.slots,
            fill_at_once=max(step.rows for step in (shape.prefill, *shape.more_rows)),
            together=shape.slots is None,
            reuse=shape.reusable and shape.slots is not None,
        )

    def _prefill_step(self, filling: Sequence[Row]) -> list[Step]:
        """Feeds the next chunk of each prompt; a row whose prompt is complete gets its first token."""
        begun = time.perf_counter()
        for row in filling:
            if row.images is not None and not row.prefilled:
                self.read_images(row.images, row.lane)
        inputs, filling = self._next_chunk(filling)
        inputs.clear(self._pad)
        if self._shape.has_encoder:
            inputs.clear_sources(self._pad)
        places = [row.lane for row in filling]
        if self._shape.slots is not None:
            # The rows of the step are the prompts that it reads, whatever their lanes are.
            places = list(range(len(filling)))
            inputs.batch_index[:, 0] = self._placement.slots_for(filling, inputs.shape.rows)
        for place, row in zip(places, filling, strict=True):
            self._place_chunk(inputs, place, row)
        logits = self._run_step(inputs)
        complete = {place: row for place, row in zip(places, filling, strict=True) if row.is_prefilled}
        steps = self._take_at(logits, complete) if complete else []
        ended = time.perf_counter()
        for request in {row.request for row in filling}:
            is_new = request.first_token is None or request.first_token > begun
            request.prefill_time = ended - request.started if is_new else request.prefill_time + ended - begun
        self._placement.filled()
        self._placement.release()
        return steps

    def read_images(self, images: RowImages, lane: int) -> None:
        """Runs the program over the images of a row, which keeps their features. Nothing to do where another one encodes them."""
        for number in range(len(images.pixels)):
            inputs, place = self._image, lane
            if inputs is None or inputs.images is None:
                raise ExecutionError("the program reads no images; compile with kv_offload=False")
            if self._shape.slots is not None:
                place = 0
                inputs.batch_index[0, 0] = self._placement.slot(lane)
            inputs.images.place_pixels(place, images, number)
            self._session.run(inputs.feed)

    def _next_chunk(self, filling: Sequence[Row]) -> tuple[StepInputs, Sequence[Row]]:
        """The inputs of the program that fits what is left of the longest prompt, and the rows that it reads.

        With slots, the rows are the first one and those behind it whose chunks fit the same program.
        """
        if TOKEN_TYPES in self._shape.image_inputs:
            return self._prefills[-1], filling  # an image is read at once
        if self._shape.slots is None:
            return fitting(self._prefills, max(_left(row) for row in filling)), filling
        chosen = fitting(self._prefills, _left(filling[0]))
        of_rows = self._of_rows[chosen.shape.width]
        alike = [row for row in filling if fitting(self._prefills, _left(row)) is chosen][: of_rows[-1].shape.rows]
        return next(inputs for inputs in of_rows if inputs.shape.rows >= len(alike)), alike

    def _place_chunk(self, inputs: StepInputs, place: int, row: Row) -> None:
        start = row.prefilled
        width = inputs.shape.width
        if row.images is not None and TOKEN_TYPES in self._shape.image_inputs:
            width = row.images.chunk(start, width)
        tokens = row.unread(width)
        _place_images(inputs, place, row, start, len(tokens))
        inputs.place(place, tokens, start, accepted=tokens[max(len(row.prompt) - start, 0) :])
        inputs.prompt_lengths[place, 0] = row.prompt_length
        inputs.lora_ids[place, 0] = row.adapter
        if self._shape.has_encoder:
            inputs.place_source(place, row.source)
            self._decodes[0].source_lengths[place, 0] = len(row.source)
        row.prefilled += len(tokens)
        if (sampler := row.request.sampler) is not None:
            sampler.configure(inputs, place)
            for decode in self._decodes:
                sampler.configure(decode, row.lane)
            if row.is_prefilled:
                sampler.draw(inputs, place, row)

    def _decode_step(self, active: Sequence[Row]) -> list[Step]:
        """Feeds the last token of each row with its drafts behind it."""
        shape = self._shape
        if active is not self._grouped:
            self._grouped, self._groups = active, _by_request(active)
            if self._fewer:
                self._placement.move_up()
        for request, _ in self._groups:
            request.decode_steps += 1
        drafts = drafts_of(self._groups, shape)
        inputs = self._decodes[0]
        if drafts:
            needed = 1 + max(map(len, drafts.values()))
            inputs = next(inputs for inputs in self._decodes if inputs.shape.width >= needed)
        elif self._fewer:
            rows = 1 + max(row.lane for row in active)
            inputs = next((fewer for fewer in self._fewer if fewer.shape.rows >= rows), inputs)
        inputs.clear(self._pad)
        if shape.slots is not None:
            for lane in range(inputs.shape.rows):
                inputs.batch_index[lane, 0] = self._placement.slot(lane)
        for row in active:
            drafted = drafts.get(row.lane, ())
            if drafted:
                tokens = [row.generated[-1], *drafted]
                inputs.place(row.lane, tokens, row.position, accepted=tokens)
            else:
                inputs.place_token(row.lane, row.generated[-1], row.position)
            _place_images(inputs, row.lane, row, row.position, 1 + len(drafted))
            inputs.prompt_lengths[row.lane, 0] = row.prompt_length
            inputs.lora_ids[row.lane, 0] = row.adapter
            if row.request.sampler is not None:
                row.request.sampler.draw(inputs, row.lane, row)
        steps = self._take(self._run_step(inputs), self._groups, drafts)
        if self.failed or any(step.finish_reason for step in steps):
            self._placement.release()
        return steps

    def _has_to_be_reread(self, row: Row) -> bool:
        """Whether Transformers would read the row's text anew at this length; it then counts as a prompt of that length."""
        length = row.position + 1
        if length not in self._shape.reread_lengths or length == row.prompt_length:
            return False
        row.read_anew()
        return True

    def _run_step(self, inputs: StepInputs) -> NDArray[Any]:
        """Logits of each row's last tokens, ``[B, K, V]``; of a sampler its tokens, ``[B, 1, 1]``. Valid until the next step."""
        outputs = self._session.run(inputs.feed)
        self._probabilities = outputs.get(PROBABILITIES)
        name, last = ("logits", "vocabulary") if self._shape.candidates is None else ("next_tokens", "1")
        result = outputs.get(name)
        wanted = inputs.shape.rows, inputs.shape.kept
        if result is None or result.ndim != 3 or result.shape[:2] != wanted:
            found = "none" if result is None else f"shape {result.shape}"
            raise ExecutionError(
                f"the program must return {name} [{wanted[0]}, {wanted[1]}, {last}], it returned {found} "
                f"among {', '.join(sorted(outputs))}"
            )
        return result

    def _take(
        self, logits: NDArray[Any], groups: Groups, drafts: Mapping[int, Sequence[int]] = MappingProxyType({})
    ) -> list[Step]:
        """The next tokens of all rows, request by request. `logits` is ``[B, K, V]``."""
        steps: list[Step] = []
        for request, rows in groups:
            try:
                steps += request.take(logits, rows, drafts)
                if request.keeps_probabilities and self._probabilities is not None:
                    for row in rows:
                        row.probabilities.append(self._probabilities[row.lane, 0].copy())
            except Exception as error:  # noqa: BLE001 - rules and criteria are the caller's code; the others go on
                request.error = error
                request.end("error")
                self.failed.append(request)
                self._placement.drop_waiting()
                continue
            if request.beams is not None:
                move_states(self._session, request.beams.moves)
        return steps

    def _take_at(self, logits: NDArray[Any], rows: Mapping[int, Row]) -> list[Step]:
        """`_take` for rows by their places in the step, which with slots are not their lanes."""
        lanes = [row.lane for row in rows.values()]
        for place, row in rows.items():
            row.lane = place
        steps = self._take(logits, _by_request([*rows.values()]))
        for lane, row in zip(lanes, rows.values(), strict=True):
            row.lane = lane
        return steps


def _left(row: Row) -> int:
    """Tokens of the prompt that are not in the cache."""
    return row.prompt_length - row.prefilled


def _by_request(rows: Sequence[Row]) -> Groups:
    groups: dict[Request, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.request, []).append(row)
    return list(groups.items())


def _place_images(inputs: StepInputs, place: int, row: Row, start: int, count: int) -> None:
    if inputs.images is not None and row.images is not None:
        inputs.images.place(place, row.images, start, count)
