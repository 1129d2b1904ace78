"""A step that runs several programs, each of some of a model's layers, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import CompiledModel, ExecutionSession, Specialization, TensorSpec
from qeff_framework.errors import ArtifactCorruptError, ExecutionError, InputError
from qeff_framework.sessions import BaseSession, host_inputs, host_outputs, resolve_shape

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


def check_windows(compiled: CompiledModel, windows: Mapping[str, CompiledModel]) -> None:
    """Raises `ArtifactCorruptError` unless the programs are those of `compiled`, each in its place, and each gets what it reads.

    Args:
        compiled: the chained artifact, or the part of one.
        windows: its programs by name.
    """
    keys = {window.metadata.get("window", {}).get("key") for window in windows.values()}
    ready = {spec.name: _forms(spec, compiled) for spec in host_inputs(compiled)}
    for place, (name, window) in enumerate(windows.items()):
        own = window.metadata.get("window", {})
        wrong = [spec.name for spec in host_inputs(window) if ready.get(spec.name) != _forms(spec, compiled)]
        if len(keys) > 1:
            problem = "and another one are of two artifacts"
        elif (own.get("number"), own.get("of")) != (place, len(windows)) or window.backend != compiled.backend:
            problem = f"stands in the place of program {place + 1} of {len(windows)}, and was made for another one"
        elif wrong:
            problem = f"reads {', '.join(wrong)}, which no program before it returns in this form"
        else:
            ready |= {spec.name: _forms(spec, compiled) for spec in host_outputs(window)}
            continue
        raise ArtifactCorruptError(f"{compiled.directory}: {name} {problem}; copy the artifact again, or compile anew")
    held = {state.input for window in windows.values() for state in window.states}
    lost = [spec.name for spec in host_outputs(compiled) if ready.get(spec.name) != _forms(spec, compiled)]
    lost += [state.input for state in compiled.states if state.input not in held]
    if lost:
        raise ArtifactCorruptError(
            f"{compiled.directory}: no program has {', '.join(lost)}; copy the artifact again, or compile anew"
        )


def _forms(spec: TensorSpec, compiled: CompiledModel) -> tuple[str, ...]:
    """Dtype and shapes of a tensor in the steps of a program."""
    shapes = dict.fromkeys(resolve_shape(spec, item.dims) for item in compiled.specializations)
    return (spec.dtype, *map(str, shapes))


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

    @property
    def states(self) -> dict[str, Array]:
        """The retained states where the sessions keep them in host memory, each from the first program that has it."""
        return {name: holders[0].states[name] for name, holders in self._holders.items()}

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
