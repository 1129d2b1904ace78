"""The arrays of one kind of step, allocated once and filled anew for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import LORA_IDS, PROMPT_LENGTHS, TOKEN_BITMASKS
from qeff_framework.generation.program_shape import ProgramShape, StepShape
from qeff_framework.images.rows import ImageStepInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feed = Mapping[str, NDArray[Any]]


class StepInputs:
    """Tokens and positions ``[B, S]``, and the further inputs that the program has."""

    def __init__(self, shape: ProgramShape, step: StepShape) -> None:
        self.shape = step
        size = (step.rows, step.width)
        self._ids = np.zeros(size, dtype=shape.token_dtype)
        self._positions = np.full(size, -1, dtype=shape.position_dtype)
        self._counting = np.arange(shape.ctx_len + step.width, dtype=shape.position_dtype)
        #: ``[B, 1]``: the cache row of each row of the step.
        self.batch_index = np.arange(step.rows, dtype=np.int64)[:, None]
        common: dict[str, NDArray[Any]] = {"input_ids": self._ids, "position_ids": self._positions}
        if "batch_index" in shape.extra_inputs:
            common["batch_index"] = self.batch_index
        #: ``[B, 1]``: tokens of each row's prompt; 0 in a row of padding.
        self.prompt_lengths = np.zeros((step.rows, 1), dtype=np.int64)
        if PROMPT_LENGTHS in shape.extra_inputs:
            common[PROMPT_LENGTHS] = self.prompt_lengths
        #: ``[B, 1]``: the adapter of each row; 0 is the model alone.
        self.lora_ids = np.zeros((step.rows, 1), dtype=np.int64)
        if LORA_IDS in shape.extra_inputs:
            common[LORA_IDS] = self.lora_ids
        if "num_logits_to_keep" in shape.extra_inputs:
            common["num_logits_to_keep"] = np.zeros((step.kept, 1), dtype=np.int64)
        #: The sampler's inputs beside `_accepted`; empty when the program returns logits.
        self.sampling: dict[str, NDArray[Any]] = {}
        #: ``[B, S]``: the tokens of the step that the program has chosen, -1 elsewhere.
        self._accepted = np.full(size, -1, dtype=np.int64)
        if shape.candidates is not None:
            self.sampling = _sampling(step.rows, shape.candidates)
            if shape.masked_tokens is not None:
                self.sampling[TOKEN_BITMASKS] = np.ones((step.rows, shape.masked_tokens), dtype=np.bool_)
            common |= {"last_accepted_output_tokens": self._accepted, **self.sampling}
        #: What belongs to images; `None` in a model that reads text alone.
        self.images: ImageStepInputs | None = None
        if step.vision:
            self.images = ImageStepInputs(
                shape.image_inputs,
                rows=step.rows,
                width=step.width,
                vision_size=step.vision,
                ctx_len=shape.ctx_len,
                image_tokens=step.image_tokens,
                tiles=step.tiles,
            )
            common |= self.images.arrays
        has_contexts = "comp_ctx_lengths" in shape.extra_inputs
        #: One feed for each compute context: they share all arrays but the one whose length says how much is read.
        self._feeds: list[tuple[int, Feed]] = [
            (length, {**common, "comp_ctx_lengths": np.zeros(length, dtype=np.int64)} if has_contexts else common)
            for length in step.contexts
        ]
        if not step.sources:
            return
        #: ``[B, 1]``: tokens of each row that the encoder has read, now or in an earlier step.
        self.source_lengths = np.zeros((step.rows, 1), dtype=np.int64)
        self._source_ids = np.zeros((step.rows, step.sources[-1]), dtype=shape.token_dtype)
        self._source_positions = np.full(self._source_ids.shape, -1, dtype=shape.position_dtype)
        self._feeds = [
            (
                length,
                {
                    **common,
                    "encoder_input_ids": self._source_ids[:, :length],
                    "encoder_position_ids": self._source_positions[:, :length],
                    "encoder_lengths": self.source_lengths,
                },
            )
            for length in step.sources
        ]

    @property
    def feed(self) -> Feed:
        """The inputs of the program that reads no more, of the cache or of the source, than the step needs."""
        if len(self._feeds) == 1:
            return self._feeds[0][1]
        needed = int((self._source_positions if self.shape.sources else self._positions).max()) + 1
        return next((feed for length, feed in self._feeds if length >= needed), self._feeds[-1][1])

    def clear(self, pad: int) -> None:
        """Makes all tokens padding."""
        self._ids.fill(pad)
        self._positions.fill(-1)
        self._accepted.fill(-1)
        self.prompt_lengths.fill(0)
        self.lora_ids.fill(0)
        if self.images is not None:
            self.images.clear()

    def clear_sources(self, pad: int) -> None:
        """Makes everything padding that the encoder reads."""
        self._source_ids.fill(pad)
        self._source_positions.fill(-1)
        self.source_lengths.fill(0)

    def place_source(self, row: int, tokens: Sequence[int]) -> None:
        """Places what the encoder reads for a row."""
        self._source_ids[row, : len(tokens)] = tokens
        self._source_positions[row, : len(tokens)] = np.arange(len(tokens))
        self.source_lengths[row, 0] = len(tokens)

    def place(self, row: int, tokens: Sequence[int], start: int, accepted: Sequence[int] = ()) -> None:
        """Places consecutive tokens, the first one at position `start`, at the beginning of a row; padding stays behind them.

        The last of them, `accepted`, belong to the answer.
        """
        self._ids[row, : len(tokens)] = tokens
        self._accepted[row, len(tokens) - len(accepted) : len(tokens)] = accepted
        self._positions[row, : len(tokens)] = self._counting[start : start + len(tokens)]

    def place_token(self, row: int, token: int, position: int) -> None:
        """`place` for the one token of a decode step, which belongs to the answer: a tenth of its time."""
        self._ids[row, 0] = token
        self._accepted[row, 0] = token
        self._positions[row, 0] = position


def fitting(prefills: Sequence[StepInputs], count: int) -> StepInputs:
    """Which of the prefill programs, ascending, reads the next of `count` tokens.

    The shortest one that holds all of them, unless more than half of it would be padding: then the longest one that they fill.
    """
    holding = next((each for each in prefills if each.shape.width >= count), prefills[-1])
    if 2 * count >= holding.shape.width:
        return holding
    return next((each for each in reversed(prefills) if each.shape.width <= count), prefills[0])


def _sampling(rows: int, candidates: int) -> dict[str, NDArray[Any]]:
    """See `contracts.SAMPLER_INPUTS`."""
    floats = ("repetition_penalties", "presence_penalties", "temperatures", "top_ps", "min_ps")
    return {
        **{name: np.zeros((rows, 1), dtype=np.float32) for name in floats},
        "top_ks": np.zeros((rows, 1), dtype=np.int32),
        "random_numbers": np.full((rows, candidates), 0.5, dtype=np.float32),
    }
