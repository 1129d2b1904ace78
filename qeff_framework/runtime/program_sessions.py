"""The loaded programs of an artifact that has several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from qeff_framework.contracts import CompiledModel, ExecutionSession
from qeff_framework.errors import ExecutionError

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class ProgramSessions(ExecutionSession):
    """A session for each program, side by side on one device."""

    def __init__(self, compiled: CompiledModel, sessions: Mapping[str, ExecutionSession]) -> None:
        self.compiled = compiled
        self.sessions = sessions
        # All run on the same device; the last is the main one.
        self.info = list(sessions.values())[-1].info

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Raises `ExecutionError`: it must be said which program."""
        del inputs
        raise ExecutionError(f"{self.compiled.directory} has the programs {', '.join(self.sessions)}; run one of them")

    def reset(self) -> None:
        """Forgets the retained states of all programs."""
        for session in self.sessions.values():
            session.reset()

    def close(self) -> None:
        """Releases all programs, also where one of them cannot be closed."""
        with ExitStack() as stack:
            for session in self.sessions.values():
                stack.callback(session.close)
