"""A step that runs several programs, each of some of a model's layers, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import CompiledModel, ExecutionSession, Specialization
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.sessions import BaseSession, host_inputs, host_outputs

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class ChainedSession(BaseSession):
    """The windows of a model's layers as one program. What one hands on goes to the next by way of the host.

    Args:
        compiled: the artifact.
        sessions: that of each program, in the order of a step. They are closed with this one.
    """

    def __init__(self, compiled: CompiledModel, sessions: Mapping[str, ExecutionSession]) -> None:
        super().__init__(compiled)
        self.sessions = dict(sessions)
        # `Any`: backends whose sessions keep their states to themselves are refused by the guard around each of them.
        self._chain: list[tuple[Any, tuple[str, ...]]] = [
            (session, tuple(spec.name for spec in host_inputs(session.compiled))) for session in self.sessions.values()
        ]
        self._returned = [spec.name for spec in host_outputs(compiled)]
        #: The sessions that have a state. Several have a cache that layers of several programs read.
        self._holders: dict[str, list[Any]] = {}
        for session, _ in self._chain:
            for state in session.compiled.states:
                self._holders.setdefault(state.input, []).append(session)
        self.info = {**self._chain[-1][0].info, "programs": str(len(self._chain))}

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs all programs. The last one's results are valid until the next step, and so is what is handed on."""
        del specialization  # Each program knows its own by the shapes.
        values = dict(inputs)
        for number, (session, names) in enumerate(self._chain):
            try:
                values.update(session.run({name: values[name] for name in names}))
            except InputError as error:
                if not number:
                    raise
                raise ExecutionError(
                    f"program {number + 1} of {len(self._chain)} refused a step that others have run: {error}"
                ) from error
        return {name: values[name] for name in self._returned}

    def clear_states(self) -> None:
        """Makes the states of all programs zero."""
        for session, _ in self._chain:
            session.reset()

    def fetch_states(self, names: Sequence[str]) -> dict[str, Array]:
        """Reads each state from the first program that has it: all others have the same."""
        found: dict[str, Array] = {}
        for session, _ in self._chain:
            own = [name for name in names if self._holders[name][0] is session]
            if own:
                found |= session.read_states(own)
        return {name: found[name] for name in names}

    def replace_states(self, states: Mapping[str, Array]) -> None:
        """Writes each state into every program that has it."""
        for session, _ in self._chain:
            own = {name: value for name, value in states.items() if session in self._holders[name]}
            if own:
                session.write_states(own)

    def release(self) -> None:
        """Closes all programs, also where one of them cannot be closed."""
        with ExitStack() as stack:
            for session, _ in self._chain:
                stack.callback(session.close)
