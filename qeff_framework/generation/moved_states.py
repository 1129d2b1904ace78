"""The states of rows that continue the texts of other rows, as those of a beam search do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from qeff_framework.contracts import ExecutionSession

#: States that stay with their rows: texts of one prompt have its source, or its sound, in common, and adapters belong to no row.
_STAYING: Final = ("cross", "adapter")


def move_states(session: ExecutionSession, moves: Mapping[int, int]) -> None:
    """Gives the rows of a program the states of other rows: row `moves[r]`'s to row r.

    The session's states are read and written as a whole: what this costs grows with the context.
    """
    if not moves:
        return
    moving: Any = session  # that of a backend whose states can be read and written
    names = [state.input for state in session.compiled.states if state.kind not in _STAYING]
    states = moving.read_states(names)
    for state in states.values():
        state[[*moves]] = state[[*moves.values()]]
    moving.write_states(states)
