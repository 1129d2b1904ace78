"""The state of the sequences that a program works on, one row of the batch each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from qeff_framework.images.rows import RowImages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qeff_framework.generation.request import Request

#: Why a row ended: its end-of-sequence token, a stop string, the caller's criteria, the time limit or the token limit; in an
#: engine also because it was cancelled, or its request failed.
FinishReason = Literal["eos", "stop_string", "stopping_criteria", "max_time", "length", "cancelled", "error"]


class Step(NamedTuple):
    """One generated token. `finish_reason` is set on the last one of its row."""

    row: int
    token: int
    finish_reason: FinishReason | None
    request: Request


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence: its prompt, its new tokens and how many there may be."""

    index: int
    #: What the decoder starts with.
    prompt: Sequence[int]
    #: Number of new tokens after which the row ends.
    limit: int
    generated: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    #: Of each new token, where the request keeps them: the probabilities ``[V]`` that it was chosen by.
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)
    #: Its row of a step's arrays: its own number, unless rows take turns.
    lane: int = -1
    #: Tokens of the prompt that are in the cache.
    prefilled: int = 0
    #: Tokens that are read as the prompt: those of `prompt`, and of the answer so far once the text has been read anew.
    prompt_length: int = 0
    #: What the encoder reads; empty without an encoder.
    source: Sequence[int] = ()
    #: What belongs to its images; `None` in a model that reads text alone.
    images: RowImages | None = None
    #: The id of its adapter; 0 is the model alone.
    adapter: int = 0
    #: Whether the row may begin with what another one has left in the cache.
    may_share: bool = True
    #: Tokens of the prompt that another row had left in the cache.
    shared: int = 0
    #: The request that the row belongs to, which sets it.
    request: Request = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lane < 0:
            self.lane = self.index
        self.prompt_length = self.prompt_length or len(self.prompt)

    @property
    def given(self) -> Sequence[int]:
        """The caller's prompt: the source, if there is an encoder to read it."""
        return self.source or self.prompt

    @property
    def finished(self) -> bool:
        """Whether the row takes no more tokens."""
        return self.finish_reason is not None

    @property
    def position(self) -> int:
        """Position of the last generated token: where the next decode step writes it."""
        return self.length - 1

    @property
    def length(self) -> int:
        """Tokens of the prompt and new tokens."""
        return len(self.prompt) + len(self.generated)

    def tail(self, count: int) -> tuple[int, ...]:
        """The last `count` tokens; empty when there are fewer."""
        missing = count - len(self.generated)
        if missing <= 0:
            return tuple(self.generated[-count:]) if count else ()
        if missing > len(self.prompt):
            return ()
        return (*self.prompt[-missing:], *self.generated)

    @property
    def is_prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.prefilled == self.prompt_length

    def unread(self, count: int) -> Sequence[int]:
        """The next `count` tokens that are to be read as the prompt, or what is left of it."""
        start, stop = self.prefilled, min(self.prefilled + count, self.prompt_length)
        answer = len(self.prompt)
        return [*self.prompt[start:stop], *self.generated[max(start - answer, 0) : max(stop - answer, 0)]]

    def read_anew(self) -> None:
        """Makes prompt and answer so far the prompt that is to be read."""
        self.prefilled, self.prompt_length = 0, self.position + 1
