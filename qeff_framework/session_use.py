"""Who uses a session: calls of several threads take turns, and a text goes on only where the cache is still its own.

The arrays that a step returns are valid until the next step of any thread, and a cache holds what its last user has written. Code
that runs steps holds `SessionUse.turn` until it has read their results. Code that keeps something in the retained states says so
with `take`, and calls `check` before the next step.
"""

from __future__ import annotations

import threading
import weakref

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError


class SessionUse:
    """The use of one session. All that run its steps share one object, see `use_of`."""

    def __init__(self) -> None:
        #: Held from a step until its results are read.
        self.turn = threading.RLock()
        #: Weak: a holder keeps its session, which would never be released otherwise. One that has gone is still no other one.
        self._holder: weakref.ref[object] | None = None

    def take(self, holder: object) -> None:
        """Says that the retained states are `holder`'s from now on. It has reset them, or is about to."""
        self._holder = weakref.ref(holder)

    def is_held_by(self, holder: object) -> bool:
        """Whether nobody else has taken the retained states since `holder` did."""
        return self._holder is not None and self._holder() is holder

    def check(self, holder: object) -> None:
        """Raises `ExecutionError` where somebody else has taken the retained states. Those of a new session are free."""
        if self._holder is None:
            self.take(holder)
        if not self.is_held_by(holder):
            raise ExecutionError(
                "another generation has started on this session; its cache does not hold this text any more"
            )


_USES: weakref.WeakKeyDictionary[ExecutionSession, SessionUse] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def use_of(session: ExecutionSession) -> SessionUse:
    """The use of `session`, the same for all that ask."""
    with _LOCK:
        return _USES.setdefault(session, SessionUse())
