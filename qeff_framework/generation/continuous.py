"""Continuous batching: which prompt is in which cache slot, and what the next step is.

The decode program has N lanes, the cache F slots, N or more. A prompt gets a lane and a slot, is prefilled alone (the prefill
program has one row), decodes together with the others, and leaves both to the next one. The slots of lanes without a prompt are
given to the program as well: their rows are padding, which writes nothing, and all slots of a step must be different.

The slots beyond N keep what finished prompts have left. A prompt that begins like one of them takes over that slot and skips the
tokens that it holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from qeff_framework.generation.rows import Row


class Scheduler:
    """Places rows into lanes and slots. It allocates what it needs once; steps change entries."""

    def __init__(self, rows: Iterable[Row], *, lanes: int, slots: int, reuse: bool) -> None:
        self._waiting = deque(rows)
        self._free_lanes = list(range(lanes - 1, -1, -1))
        #: Slot of each lane, then the spare slots; always a permutation of all slots.
        self._slots = list(range(slots))
        self._lanes = lanes
        #: Tokens whose keys and values a slot holds; empty where nothing is known.
        self._held: list[Sequence[int]] = [()] * slots
        self._reuse = reuse and slots > lanes
        #: Number of the row that a slot was used for last, for choosing the one that is given up.
        self._used = [-1] * slots
        self._count = 0
        self.filling: Row | None = None
        self.decoding: list[Row] = []

    @property
    def busy(self) -> bool:
        """There is something left to do."""
        return bool(self._waiting or self.filling or self.decoding)

    def slot(self, lane: int) -> int:
        """The cache slot of a lane."""
        return self._slots[lane]

    def admit(self) -> Row | None:
        """The row that is being prefilled; takes the next one when there is a free lane."""
        if self.filling is None and self._waiting and self._free_lanes:
            row = self._waiting.popleft()
            row.lane = self._free_lanes.pop()
            row.prefilled = self._take_slot(row)
            self.filling = row
        return self.filling

    @property
    def decode_now(self) -> bool:
        """Whether the rows that decode get a step before the next chunk of a prompt.

        While less than half of the lanes decode, filling the others first costs fewer steps in all. Once half of them do, a long
        prompt must not hold them up.
        """
        return bool(self.decoding) and (self.filling is None or 2 * len(self.decoding) >= self._lanes)

    def filled(self) -> None:
        """The prompt of the row that was being prefilled is in the cache."""
        if self.filling is not None:
            self.decoding.append(self.filling)
            self.filling = None

    def release(self) -> None:
        """Gives the lanes of finished rows back."""
        for row in self.decoding:
            if row.finished:
                self._free_lanes.append(row.lane)
                if self._reuse:
                    # The last token was chosen, but never written.
                    self._held[self.slot(row.lane)] = (*row.prompt, *row.generated[:-1])
        self.decoding = [row for row in self.decoding if not row.finished]

    def _take_slot(self, row: Row) -> int:
        """Gives the row's lane the best free slot; returns how many tokens of the prompt that slot holds already."""
        places = [*self._free_lanes, row.lane, *range(self._lanes, len(self._slots))] if self._reuse else [row.lane]
        best = max(places, key=lambda place: (self._common(row, place), -self._used[self._slots[place]]))
        common = self._common(row, best)
        self._slots[row.lane], self._slots[best] = self._slots[best], self._slots[row.lane]
        slot = self._slots[row.lane]
        self._held[slot] = ()
        self._used[slot] = self._count
        self._count += 1
        return common

    def _common(self, row: Row, place: int) -> int:
        """Tokens that the prompt has in common with a slot; the last one must be run in any case, for its logits."""
        held = self._held[self._slots[place]]
        most = min(len(held), len(row.prompt) - 1)
        return next((index for index in range(most) if held[index] != row.prompt[index]), most)
