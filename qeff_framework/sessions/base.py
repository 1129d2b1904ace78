"""The base class of sessions: everything of `ExecutionSession` but the step itself."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qeff_framework.contracts import CompiledModel, Specialization
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.sessions.buffers import state_buffers, state_specs
from qeff_framework.sessions.selection import StepSelector
from qeff_framework.sessions.shapes import resolve_shape

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class BaseSession(ABC):
    """A loaded program with its retained state. A backend completes it with `run_step`.

    Implements `qeff_framework.plugin_api.ExecutionSession` and is a context manager. Calls from several threads run one after the
    other, and `close` waits for the step that is running.

    A backend whose states lie on the device overrides `clear_states`, `fetch_states` and `replace_states`; one that holds a
    device or memory overrides `release`.

    Example::

        class AcmeSession(BaseSession):
            def __init__(self, compiled: CompiledModel) -> None:
                super().__init__(compiled)
                self.info = {"device": "Acme NPU", "simulator": "no"}
                self._programs = {item.name: load(compiled, item) for item in self.specializations}

            def run_step(self, specialization: Specialization, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
                return self._programs[specialization.name].run(inputs, self.states)
    """

    #: Where it runs, for people; a backend replaces it.
    info: Mapping[str, str]

    def __init__(self, compiled: CompiledModel) -> None:
        self.compiled = compiled
        self.info = {}
        self._selector = StepSelector(compiled)
        self._states: dict[str, Array] | None = None
        self._state_is_undefined = False
        self._is_closed = False
        self._lock = threading.RLock()

    # --- what a backend implements ------------------------------------------------------------------------------------

    @abstractmethod
    def run_step(self, specialization: Specialization, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step and updates the retained states.

        Args:
            specialization: one of `specializations`.
            inputs: every input of the caller, checked: names, dtypes, shapes, positions and cache rows fit `specialization`.

        Returns:
            The outputs that are not retained states, by name. The arrays must stay as they are until the next call.

        Raises:
            InputError: the inputs cannot be taken; the states must be as they were.
            ExecutionError: the step failed. No further step runs until `reset`, if the program has states.
        """

    def clear_states(self) -> None:
        """Makes every retained state zero, those of kind ``"adapter"`` aside; by default those in `states`."""
        for state in self.compiled.states:
            if self._states is not None and state.kind != "adapter":
                self._states[state.input].fill(0)

    def fetch_states(self, names: Sequence[str]) -> dict[str, Array]:
        """Copies of retained states, in the dtypes and shapes of the program's inputs; by default of those in `states`."""
        return {name: self.states[name].copy() for name in names}

    def replace_states(self, states: Mapping[str, Array]) -> None:
        """Overwrites retained states with arrays of their dtypes and shapes; by default those in `states`."""
        for name, value in states.items():
            self.states[name][...] = value

    def release(self) -> None:  # noqa: B027 -- a session without a device need not override it
        """Gives the device and memory back; by default there is nothing to give back. Called once."""

    # --- what a backend uses ------------------------------------------------------------------------------------------

    @property
    def specializations(self) -> tuple[Specialization, ...]:
        """Those that inputs can choose: of several with the same input shapes the first."""
        return self._selector.specializations

    @property
    def states(self) -> dict[str, Array]:
        """The retained states in host memory, by input name. They are allocated, as zeros, when first asked for."""
        if self._states is None:
            self._states = state_buffers(self.compiled)
        return self._states

    # --- ExecutionSession ---------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step, see `ExecutionSession.run`. The arrays that it returns are valid until the next call of any thread.

        Raises:
            InputError: names, dtypes, shapes, positions or cache rows do not fit the program. No state has changed.
            ExecutionError: the step failed, an earlier one has failed and `reset` was not called, or the session is closed.
        """
        with self._lock:
            self._check_open()
            self._check_defined()
            specialization, arrays = self._selector.select(inputs)
            # Set first, so that an interruption counts as a failure.
            self._state_is_undefined = bool(self.compiled.states)
            try:
                outputs = self.run_step(specialization, arrays)
            except InputError:
                self._state_is_undefined = False
                raise
            self._state_is_undefined = False
            return outputs

    def reset(self) -> None:
        """Makes every retained state zero, as after loading; adapters that were written stay.

        Raises:
            ExecutionError: the session is closed.
        """
        with self._lock:
            self._check_open()
            self.clear_states()
            self._state_is_undefined = False

    def read_states(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """Copies of the retained states by input name, for instance ``past_key.0 [B, H, C, D]``: all, or those of `names`.

        Written into another session of the same model, they continue there what this one has read.

        Raises:
            InputError: the program has no such state.
            ExecutionError: the session is closed, or a step failed and `reset` was not called.
        """
        with self._lock:
            self._check_open()
            self._check_defined()
            known = state_specs(self.compiled)
            asked = [*known] if names is None else [*names]
            self._check_known(asked, known)
            return self.fetch_states(asked)

    def write_states(self, states: Mapping[str, Array]) -> None:
        """Overwrites retained states, by input name; those that are not given stay as they are.

        Raises:
            InputError: the program has no such state, or it has another dtype or shape. No state has changed.
            ExecutionError: the session is closed, or a step failed and `reset` was not called.
        """
        with self._lock:
            self._check_open()
            self._check_defined()
            known = state_specs(self.compiled)
            self._check_known(states, known)
            dims = self.compiled.specializations[0].dims
            for name, value in states.items():
                wanted = resolve_shape(known[name], dims)
                if tuple(value.shape) != wanted or str(value.dtype) != known[name].dtype:
                    raise InputError(
                        f"the state {name} is {known[name].dtype} {list(wanted)}, and {value.dtype} {list(value.shape)} was "
                        "given; read it from a program with the same sizes and precision, or convert it"
                    )
            self.replace_states(states)

    def close(self) -> None:
        """Releases the device and memory. Idempotent; every other call afterwards raises `ExecutionError`."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self.release()
            finally:
                self._states = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_defined(self) -> None:
        if self._state_is_undefined:
            raise ExecutionError(
                "an earlier step failed and left the retained state undefined: call reset() and start again"
            )

    def _check_known(self, names: Iterable[str], known: Mapping[str, object]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(
                f"the program has no state {', '.join(unknown)}; it has {', '.join(known) if known else 'none'}"
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ExecutionError("the session is closed: make a new one from the compiled model")
