"""Which row is where: lanes of the steps, slots of the cache, and what the next step is.

The decode program has N lanes, the cache F slots, N or more; without continuous batching each lane is its own slot. A row gets a
lane and a slot, is prefilled, decodes together with the others, and leaves both to the next one. With continuous batching a row
joins those that are being prefilled when it has a lane and the prefill programs have room for it, and decodes when its own prompt
is read; otherwise all rows that wait when a prefill begins are prefilled together. The slots of lanes without a row are given to
the program as well: their rows are padding, which writes nothing, and all slots of a step must be different.

Decode programs of fewer rows, where there are any, take the first lanes. Rows that decode move there, and their slots with them.

The slots beyond N keep what finished rows have left. A prompt that begins like one of them takes over that slot and skips the
tokens that it holds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from qeff_framework.generation.rows import Row


class Placement:
    """Places rows into lanes and slots. It allocates what it needs once; steps change entries."""

    def __init__(self, *, lanes: int, slots: int, fill_at_once: int, together: bool, reuse: bool) -> None:
        #: Priority, number of arrival, row.
        self._waiting: list[tuple[int, int, Row]] = []
        self._arrivals = 0
        self._free_lanes = list(range(lanes - 1, -1, -1))
        #: Slot of each lane, then the spare slots; always a permutation of all slots.
        self._slots = list(range(slots))
        self._lanes = lanes
        self._fill_at_once = fill_at_once
        #: Rows that are prefilled together begin together and wait for each other.
        self._together = together
        #: Tokens whose keys and values a slot holds; empty where nothing is known.
        self._held: list[Sequence[int]] = [()] * slots
        self._reuse = reuse and slots > lanes
        #: Number of the row that a slot was used for last, for choosing the one that is given up.
        self._used = [-1] * slots
        self._count = 0
        #: Rows that are being prefilled, and those of them that wait for the others to begin decoding together.
        self.filling: list[Row] = []
        self._filled: list[Row] = []
        #: Rows that keep their lanes and slots, and are to be prefilled again.
        self._rereading: deque[Row] = deque()
        #: Another list whenever other rows decode.
        self.decoding: list[Row] = []

    @property
    def busy(self) -> bool:
        """There is something left to do."""
        return bool(self.decoding or self.filling or self._waiting or self._rereading)

    @property
    def waiting(self) -> int:
        """Rows that have no lane yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that have a lane."""
        return self._lanes - len(self._free_lanes)

    def slot(self, lane: int) -> int:
        """The cache slot of a lane."""
        return self._slots[lane]

    def slots_for(self, rows: Sequence[Row], count: int) -> list[int]:
        """`count` different slots: those of `rows`, then others for padding, of the last lanes: the first ones are those that
        decode.
        """
        taken = [self._slots[row.lane] for row in rows]
        if len(taken) == count:
            return taken
        return [*taken, *[slot for slot in reversed(self._slots) if slot not in taken][: count - len(taken)]]

    def add(self, rows: Iterable[Row], priority: int = 0) -> None:
        """Appends rows to the queue; a smaller `priority` comes first, and of equal ones the earlier row."""
        for row in rows:
            heapq.heappush(self._waiting, (priority, self._arrivals, row))
            self._arrivals += 1

    def admit(self) -> list[Row]:
        """The rows that are being prefilled, with the next ones where a lane is free and they may join."""
        if not (self.filling and self._together):
            while self._rereading and len(self.filling) < self._fill_at_once:
                self.filling.append(self._rereading.popleft())
            while self._waiting and self._free_lanes and len(self.filling) < self._fill_at_once:
                row = heapq.heappop(self._waiting)[2]
                row.lane = self._free_lanes.pop()
                row.prefilled = row.shared = self._take_slot(row)
                self.filling.append(row)
        return self.filling

    @property
    def decode_now(self) -> bool:
        """Whether the rows that decode get a step before the next chunk of a prompt.

        While less than half of the lanes decode, filling the others first costs fewer steps in all. Once half of them do, a long
        prompt must not hold them up.
        """
        return bool(self.decoding) and (not self.filling or 2 * len(self.decoding) >= self._lanes)

    def filled(self) -> None:
        """Lets the rows decode whose prompts are in the cache, once that is so for all that must begin together."""
        self._filled += [row for row in self.filling if row.is_prefilled]
        self.filling = [row for row in self.filling if not row.is_prefilled]
        if self._filled and not (self.filling and self._together):
            self.decoding = [*self.decoding, *sorted(self._filled, key=lambda row: row.lane)]
            self._filled = []

    def move_up(self) -> None:
        """Gives the rows that decode the first lanes; what had these changes places with them."""
        count = len(self.decoding)
        first = set(range(count)) - {row.lane for row in self.decoding}
        others = {row.lane: row for row in (*self.filling, *self._filled, *self._rereading)}
        for row in [row for row in self.decoding if row.lane >= count]:
            lane, left = first.pop(), row.lane
            self._slots[lane], self._slots[left] = self._slots[left], self._slots[lane]
            row.lane = lane
            if lane in others:
                others[lane].lane = left
            else:
                self._free_lanes.remove(lane)
                self._free_lanes.append(left)

    def reread(self, rows: Iterable[Row]) -> None:
        """Takes rows out of decoding: their texts are to be read again."""
        again = list(rows)
        self._rereading += again
        self.decoding = [row for row in self.decoding if all(row is not other for other in again)]

    def release(self) -> None:
        """Gives the lanes of finished rows back, and drops those that finished while they waited."""
        for row in (*self.decoding, *self._filled):
            # The last token was chosen, but never written.
            self._leave(row, (*row.prompt, *row.generated[:-1]) if self._reuse and row.finished else ())
        for row in (*self.filling, *self._rereading):
            self._leave(row, (*row.prompt, *row.generated)[: row.prefilled] if self._reuse and row.finished else ())
        self.decoding = [row for row in self.decoding if not row.finished]
        self._filled = [row for row in self._filled if not row.finished]
        self._rereading = deque(row for row in self._rereading if not row.finished)
        if any(row.finished for row in self.filling):
            self.filling = [row for row in self.filling if not row.finished]
            self.filled()

    def drop_waiting(self) -> None:
        """Takes the finished rows out of the queue."""
        self._waiting = [entry for entry in self._waiting if not entry[2].finished]
        heapq.heapify(self._waiting)

    def _leave(self, row: Row, held: Sequence[int]) -> None:
        if row.finished:
            self._free_lanes.append(row.lane)
            # What a row has left whose request failed is not known.
            self._held[self.slot(row.lane)] = () if row.finish_reason == "error" else held

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
        if not row.may_share:
            return 0
        held = self._held[self._slots[place]]
        most = min(len(held), len(row.prompt) - 1)
        return next((index for index in range(most) if held[index] != row.prompt[index]), most)
