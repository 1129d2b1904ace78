"""What stands before the start tokens of a window: a prompt of the caller, and what was said before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qeff_framework.errors import InputError
from qeff_framework.speech.segments import Segment


@dataclass(frozen=True, kw_only=True)
class Context:
    """The rules of Transformers' Whisper. Raises `InputError` for values that contradict each other."""

    #: The caller's, with the token that begins it; empty: none.
    prompt_ids: tuple[int, ...] = ()
    #: Which windows the prompt stands before where they are conditioned on what was said before.
    condition_type: Literal["first-segment", "all-segments"] = "first-segment"
    #: Windows are conditioned on what was said before.
    on_previous: bool = False
    #: Begins what was said before.
    previous_id: int | None = None
    #: Tokens of what was said before, at most.
    longest: int = 0
    timestamp_begin: int | None = None

    def __post_init__(self) -> None:
        if self.condition_type not in ("first-segment", "all-segments"):
            raise InputError(
                f"prompt_condition_type={self.condition_type!r} is unknown; it can be first-segment or all-segments"
            )
        if self.condition_type == "all-segments" and not self.on_previous:
            raise InputError(
                "prompt_condition_type='all-segments' needs condition_on_prev_tokens=True; give that as well"
            )

    @property
    def most(self) -> int:
        """Tokens before the start tokens, at most."""
        if not self.on_previous:
            return len(self.prompt_ids)
        begun = len(self.prompt_ids) if self.condition_type == "all-segments" else self.previous_id is not None
        return max(len(self.prompt_ids), begun + self.longest)

    def tokens(self, segments: Sequence[Segment], *, is_trusted: bool) -> list[int]:
        """What stands before a window's start tokens.

        Args:
            segments: what was said before in this clip.
            is_trusted: the last window was not decoded at a high temperature.
        """
        of_all = self.condition_type == "all-segments"
        said = [] if of_all or not self.prompt_ids else [self._without_begin()]
        said += [self._without_second_stamp(segment.tokens) for segment in segments]
        if not (self.on_previous and is_trusted and said):
            return [*self.prompt_ids]
        begin = [] if self.previous_id is None else [self.previous_id]
        if of_all and self.prompt_ids:
            begin = [*self.prompt_ids]
        joined = [token for part in said for token in part]
        return [*begin, *joined[-self.longest :]]

    def _without_begin(self) -> list[int]:
        first, *others = self.prompt_ids
        return others if first == self.previous_id else [first, *others]

    def _without_second_stamp(self, tokens: Sequence[int]) -> list[int]:
        """Of two time stamps at the end, the second one begins the next segment."""
        begin = self.timestamp_begin
        is_double = begin is not None and len(tokens) > 2 and tokens[-2] >= begin
        return [*tokens[:-1]] if is_double else [*tokens]


def prompt_tokens(given: Any, vocab_size: int) -> tuple[int, ...]:
    """`prompt_ids` of ``generate`` as a tuple. Raises `InputError` for others than token ids of the model in a row."""
    if given is None:
        return ()
    plain = given.tolist() if hasattr(given, "tolist") else given
    is_row = isinstance(plain, Sequence) and not isinstance(plain, str)
    if not is_row or not all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size for token in plain
    ):
        raise InputError(
            f"prompt_ids must be a row of token ids from 0 to {vocab_size - 1}, as the processor's get_prompt_ids makes them"
        )
    return (*plain,)
