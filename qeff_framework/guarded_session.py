"""A backend's session whose exceptions name the backend, and whose results are checked against the program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import CompiledModel, ExecuteRequest, ExecutionSession, TensorSpec
from qeff_framework.errors import BackendError, ExecutionError
from qeff_framework.plugin_answers import blamed

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


def guard_session(session: ExecutionSession, request: ExecuteRequest, told: str) -> GuardedSession:
    """Checks what the execute hook returned. A session that breaks the contract is closed before `BackendError` is raised."""
    problems = []
    if session.compiled != request.compiled:
        problems.append("its compiled is not the program of the request")
    if not isinstance(session.info, Mapping) or not all(
        isinstance(part, str) for pair in session.info.items() for part in pair
    ):
        problems.append(f"its info is {type(session.info).__name__}, not a mapping of names to texts")
    problems += [
        f"its {name} cannot be called" for name in ("run", "reset", "close") if not callable(getattr(session, name))
    ]
    if problems:
        with contextlib.suppress(Exception):
            session.close()
        raise BackendError(f"{told} returned a session that breaks the contract from execute: {'; '.join(problems)}")
    return GuardedSession(session, told)


class GuardedSession:
    """Passes every call on to `session`. A result is checked against the program when its form is new for its kind of step.

    Args:
        session: what the execute hook returned.
        told: backend and package, for messages.
    """

    def __init__(self, session: ExecutionSession, told: str) -> None:
        self._session = session
        self._told = told
        self.compiled: CompiledModel = session.compiled
        retained = {state.output for state in self.compiled.states}
        self._asked = [item for item in self.compiled.outputs if item.name not in retained]
        self._names = [item.name for item in self._asked]
        #: By the shape of a step's first input: shapes and types of its results, which were checked.
        self._checked: dict[object, object] = {}
        self.info: Mapping[str, str] = session.info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step; see `ExecutionSession.run`."""
        try:
            outputs = self._session.run(inputs)
        except BaseException:
            # Entered only here: a step must not pay for it.
            with blamed(self._told, "failed in a step", ExecutionError):
                raise
        kind = next((getattr(value, "shape", None) for value in inputs.values()), None)
        form = self._form(outputs)
        if form is None or self._checked.get(kind) != form:
            self._check(outputs, inputs)
            self._checked[kind] = form
        return outputs

    def reset(self) -> None:
        """Forgets the retained state."""
        with blamed(self._told, "failed to reset its states", ExecutionError):
            self._session.reset()

    def read_states(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """Copies of the retained states; see `BaseSession.read_states`."""
        read = self._for_states("read_states")
        with blamed(self._told, "failed to read its states", ExecutionError):
            states: dict[str, Array] = read(names)
        return states

    def write_states(self, states: Mapping[str, Array]) -> None:
        """Overwrites retained states; see `BaseSession.write_states`."""
        write = self._for_states("write_states")
        with blamed(self._told, "failed to write its states", ExecutionError):
            write(states)

    def _for_states(self, name: str) -> Any:
        call = getattr(self._session, name, None)
        if call is None:
            raise ExecutionError(
                f"{self._told} keeps its states to itself: its session has no {name}, which qeff_framework.sessions.BaseSession "
                "provides; run prompt and answer in one session"
            )
        return call

    def close(self) -> None:
        """Releases device and memory."""
        with blamed(self._told, "failed to close its session", ExecutionError):
            self._session.close()

    def _form(self, outputs: Mapping[str, Array]) -> list[object] | None:
        """Shape and type of each result, a microsecond for one of them; `None` where one has none."""
        try:
            return [(value.shape, value.dtype) for value in [outputs[name] for name in self._names]]
        except (AttributeError, KeyError, TypeError):
            return None

    def _check(self, outputs: object, inputs: Mapping[str, Array]) -> None:
        if not isinstance(outputs, Mapping):
            raise BackendError(
                f"{self._told} returned {type(outputs).__name__} from a step, not a mapping of its outputs"
            )
        missing = [name for name in self._names if name not in outputs]
        if missing:
            raise BackendError(
                f"{self._told} returned no {', '.join(missing)} from a step, only {', '.join(map(str, outputs))}"
            )
        sizes = self._sizes(inputs)
        for item in self._asked:
            problem = _difference(item, outputs[item.name], sizes)
            if problem:
                raise BackendError(f"{self._told} returned '{item.name}' from a step as {problem}")

    def _sizes(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """What the symbols of shapes stand for in a step, as far as its inputs say."""
        return {
            symbol: size
            for spec in self.compiled.inputs
            if spec.name in inputs
            for symbol, size in zip(spec.shape, getattr(inputs[spec.name], "shape", ()), strict=False)
            if isinstance(symbol, str)
        }


def _difference(spec: TensorSpec, value: Any, sizes: Mapping[str, int]) -> str:
    """What is wrong with an output, or an empty text."""
    shape, dtype = getattr(value, "shape", None), str(getattr(value, "dtype", ""))
    wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape]
    told = f", not {spec.dtype} [{', '.join(map(str, wanted))}]"
    if shape is None:
        return f"{type(value).__name__}{told}"
    fits = len(shape) == len(wanted) and all(
        isinstance(size, str) or size == found for size, found in zip(wanted, shape, strict=True)
    )
    return "" if fits and dtype == spec.dtype else f"{dtype} [{', '.join(map(str, shape))}]{told}"
