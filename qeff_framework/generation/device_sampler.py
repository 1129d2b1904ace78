"""Tokens that the program itself chooses: the host gives the settings of each row, and random numbers for samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.randomness import generator_of, seed_of
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.step_inputs import StepInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Settings that the program has inputs for.
_SUPPORTED = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"}
)
#: Settings that change scores and no choice.
_WITHOUT_EFFECT = frozenset({"renormalize_logits"})


class DeviceSampler:
    """Implements `TokenSelector` for a program that returns ``next_tokens``.

    Each row draws its random numbers from its own generator, derived from the seed and its index, one set for each token: what a
    row gets depends neither on the others nor on the chunks of its prompt. Raises `InputError` for settings that the program
    has no inputs for.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        shape: ProgramShape,
        logits_processor: Sequence[Any] | None = None,
    ) -> None:
        self._vocab_size = shape.vocab_size
        refused = [name for name in settings.score_settings if name not in _SUPPORTED | _WITHOUT_EFFECT]
        refused += ["logits_processor"] if logits_processor else []
        if refused:
            raise InputError(
                f"{', '.join(refused)}: the program chooses tokens on the device, by {', '.join(sorted(_SUPPORTED))} only; leave "
                f"the rest out (what the checkpoint asks for, with {', '.join(f'{name}=None' for name in refused)}), or compile "
                "without include_sampler"
            )
        #: The program's marks must be those of the prompt, which a cache slot that another prompt has left does not have.
        self.needs_own_marks = settings.repetition_penalty != 1.0 or settings.presence_penalty != 0.0
        self._values = {
            "repetition_penalties": settings.repetition_penalty,
            "presence_penalties": settings.presence_penalty,
            "temperatures": settings.temperature if settings.do_sample else 0.0,
            "top_ks": _top_k(settings, shape),
            "top_ps": settings.top_p,
            "min_ps": settings.min_p or 0.0,
        }
        self._generators: list[np.random.Generator] = []
        if settings.do_sample:
            seed = seed_of(settings)
            self._generators = [generator_of(seed, row.index) for row in rows]

    def configure(self, inputs: StepInputs, place: int) -> None:
        """Writes the settings into the inputs of a kind of step, at the row's place; they stay there until another row's come."""
        for name, value in self._values.items():
            inputs.sampling[name][place, 0] = value

    def draw(self, inputs: StepInputs, place: int, row: Row) -> None:
        """Random numbers for the row's next token, at its place among the rows of the step."""
        if self._generators:
            numbers = inputs.sampling["random_numbers"]
            self._generators[row.index].random(out=numbers[place], dtype=np.float32)

    def __call__(self, tokens: NDArray[Any], rows: Sequence[Row], /) -> list[int]:
        """`tokens` is ``[B, 1]``."""
        chosen = [int(tokens[row.lane, 0]) for row in rows]
        for row, token in zip(rows, chosen, strict=True):
            if token < 0 or (self._vocab_size is not None and token >= self._vocab_size):
                raise ExecutionError(
                    f"the program chose the token {token} for prompt {row.index}, which the model does not know: compile without "
                    "include_sampler, and compare the logits with PyTorch"
                )
        return chosen

    def forget(self, row: Row) -> None:
        """What is kept for a row is small."""


def _top_k(settings: GenerationSettings, shape: ProgramShape) -> int:
    """Top-k of samples. All tokens can be asked for only where all of them are candidates."""
    candidates = shape.candidates or 0
    asked = settings.top_k or shape.vocab_size or candidates + 1
    if settings.do_sample and asked > candidates and candidates != shape.vocab_size:
        raise InputError(
            f"top_k={settings.top_k}: the program chooses among the {candidates} most likely tokens; give top_k=1 to "
            f"{candidates}, or compile without include_sampler"
        )
    return min(asked, candidates)
