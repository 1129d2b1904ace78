"""What a program computes for given tokens, with logits behind each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.generation import ProgramShape
from qeff_framework.generation.step_inputs import StepInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float32]

_STATE = re.compile(r"past_(key|value)\.(\d+)")


class ForcedReading:
    """Feeds texts of one row through the program that returns the most logits a step: as many as it reads tokens."""

    def __init__(self, session: ExecutionSession) -> None:
        self._session: Any = session
        shape = ProgramShape.of(session.compiled)
        if shape.candidates is not None:
            raise InputError(
                "the program chooses its tokens itself and returns no logits; compile without include_sampler"
            )
        self._inputs = StepInputs(shape, shape.decodes[-1])
        self.ctx_len = shape.ctx_len
        #: Tokens of a step.
        self.chunk = shape.decodes[-1].width

    def read(self, tokens: Sequence[int]) -> Numbers:
        """The logits behind each of `tokens`, ``[T, V]``."""
        self._session.reset()
        parts = []
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            self._inputs.clear(0)
            self._inputs.place(0, part, start)
            self._inputs.prompt_lengths[0, 0] = len(tokens)
            # The last tokens of a row have the last columns.
            logits = self._session.run(self._inputs.feed)["logits"][0, -len(part) :]
            parts.append(np.array(logits, np.float32))
        return np.concatenate(parts)

    def stored(self, length: int) -> dict[int, dict[str, Numbers]]:
        """By layer the keys and values ``[H, T, D]`` of the text that was read last.

        Empty where the session does not have them in host memory as numbers.
        """
        states: Mapping[str, Any] = getattr(self._session, "states", None) or {}
        found: dict[int, dict[str, Numbers]] = {}
        for name, content in states.items():
            match = _STATE.fullmatch(name)
            if match is None or content.ndim != 4 or content.dtype.kind != "f" or content.shape[2] < length:
                continue
            numbers = np.array(content[0, :, :length], np.float32)
            if numbers.any():  # a session with its states on the device may have zeros here
                found.setdefault(int(match[2]), {})["keys" if match[1] == "key" else "values"] = numbers
        return found
