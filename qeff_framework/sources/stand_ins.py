"""Functions of libraries that are answered differently for a while, in the threads that ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StandIn:
    """A function in the place of one of a library, as long as somebody uses it.

    Other threads see it too: `answer` tells by a context variable whether it is meant, and calls the original otherwise.
    """

    def __init__(self, name: str, answer: Callable[..., Any]) -> None:
        """`name`: that of the function in its module. `answer` takes the original in front of the arguments."""
        self._name, self._answer = name, answer
        self._lock = threading.Lock()
        self._users = 0
        self._original: Any = None

    @contextmanager
    def installed(self, module: Any) -> Iterator[None]:
        """Stands in `module`, always the same one, while the body runs. What somebody else has put there meanwhile stays."""
        with self._lock:
            if not self._users:
                self._original = getattr(module, self._name)
                setattr(module, self._name, self._answered)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and getattr(module, self._name) == self._answered:
                    setattr(module, self._name, self._original)

    def _answered(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(self._original, *args, **kwargs)
