"""Where the rows of the caches lie in their buffers, for steps that take adjacent rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CacheRows:
    """The order of the rows in buffers ``[F, H, C, D]`` that have one order in common.

    Args:
        buffers: of all caches, as zeros.
    """

    def __init__(self, buffers: Sequence[NDArray[Any]]) -> None:
        self._buffers = buffers
        self.clear()

    def clear(self) -> None:
        """Puts each row in its own place; the buffers are zeros again."""
        #: Of each row of a cache, its place in the buffers.
        self.places = list(range(len(self._buffers[0])))
        self._rows = list(self.places)
        #: Of each place, the slots up to the last one that was written.
        self._slots = [0] * len(self.places)
        #: The rows of the last step, and those of the last one that had others.
        self._last: list[int] = []
        self._before: list[int] = []

    def fill(self) -> None:
        """Takes all slots as written."""
        self._slots = [max(buffer.shape[2] for buffer in self._buffers)] * len(self.places)

    def arrange(self, rows: Sequence[int]) -> int:
        """The place of the first of `rows`, the others behind it; exchanges rows of the buffers where they lie otherwise.

        Steps that take turns, as some rows read prompts while others decode, settle in places of their own: rows move for a step
        where they put the fewest rows of the one before out of place, and of such places where the fewest move.
        """
        if rows != self._last:
            self._before, self._last = self._last, list(rows)
        first = self.places[rows[0]]
        if all(self.places[row] == first + number for number, row in enumerate(rows)):
            return first
        others = set(self._before).difference(rows)

        def moved(start: int) -> tuple[int, int]:
            entered = [start + number for number, row in enumerate(rows) if self.places[row] != start + number]
            return sum(self._rows[place] in others for place in entered), len(entered)

        first = min(range(len(self.places) - len(rows) + 1), key=moved)
        for number, row in enumerate(rows):
            self._exchange(first + number, self.places[row])
        return first

    def written(self, first: int, position_ids: NDArray[Any]) -> None:
        """Notes what a step writes of the rows from place `first` on: positions ``[B, S]``."""
        for place, position in enumerate(position_ids.max(axis=1).tolist(), first):
            self._slots[place] = max(self._slots[place], position + 1)

    def _exchange(self, one: int, other: int) -> None:
        if one == other:
            return
        slots = max(self._slots[one], self._slots[other])
        for buffer in self._buffers:
            moved = buffer[one, :, :slots].copy()
            buffer[one, :, :slots] = buffer[other, :, :slots]
            buffer[other, :, :slots] = moved
        for values in (self._slots, self._rows):
            values[one], values[other] = values[other], values[one]
        self.places[self._rows[one]], self.places[self._rows[other]] = one, other
