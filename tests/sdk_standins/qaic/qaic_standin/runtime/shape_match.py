"""Selects the specialization that the buffers of a call fit (rows R8 and R9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..program_description import Entry, ProgramDescription

_MAX_RANK = 8


@dataclass(frozen=True, kw_only=True)
class HostBuffer:
    """One buffer as the host gave it."""

    data: bytes
    element_size: int
    dims: tuple[int, ...]

    @property
    def is_skipped(self) -> bool:
        return self.dims == (0,) and not self.data


class NoMatchingSpecializationError(ValueError):
    """No entry fits; the message says what is wrong with the first buffer that does not fit any."""


def select_entry(program: ProgramDescription, buffers: Sequence[HostBuffer]) -> Entry:
    """The first entry in which element size and dims of every buffer that is not skipped are right.

    Raises:
        NoMatchingSpecializationError: none, or an input is skipped that is not retained.
    """
    for binding, buffer in zip(program.bindings, buffers, strict=True):
        if not 1 <= len(buffer.dims) <= _MAX_RANK:
            raise NoMatchingSpecializationError(f"{binding.name}: {len(buffer.dims)} dims, 1 to {_MAX_RANK} allowed")
        if buffer.is_skipped and binding.is_input and not binding.is_retained:
            raise NoMatchingSpecializationError(f"{binding.name}: skipped, but it is not retained state")
    for entry in program.entries:
        if all(
            buffer.is_skipped or (buffer.element_size == binding.element_size and buffer.dims == dims)
            for binding, buffer, dims in zip(program.bindings, buffers, entry.dims, strict=True)
        ):
            return entry
    shown = {b.name: buffer.dims for b, buffer in zip(program.bindings, buffers, strict=True) if not buffer.is_skipped}
    raise NoMatchingSpecializationError(f"given {shown}")
