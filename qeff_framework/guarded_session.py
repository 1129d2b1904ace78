"""A backend's session whose exceptions name the backend, and whose first results are checked against the program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import CompiledModel, ExecutionSession
from qeff_framework.errors import BackendError, ExecutionError, QEFFError
from qeff_framework.plugin_answers import blamed, error_line

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class GuardedSession:
    """Passes every call on to `session`. A step costs one more function call; only the first result is looked at.

    Args:
        session: what the execute hook returned.
        told: backend and package, for messages.
    """

    def __init__(self, session: ExecutionSession, told: str) -> None:
        self._session = session
        self._told = told
        self._checked = False
        self.compiled: CompiledModel = session.compiled
        self.info: Mapping[str, str] = session.info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step; see `ExecutionSession.run`."""
        try:
            outputs = self._session.run(inputs)
        except QEFFError:
            raise
        except Exception as error:
            raise ExecutionError(f"{self._told} failed in a step: {error_line(error)}") from error
        if not self._checked:
            self._check(outputs)
            self._checked = True
        return outputs

    def reset(self) -> None:
        """Forgets the retained state."""
        with blamed(self._told, "failed to reset its states", ExecutionError):
            self._session.reset()

    def close(self) -> None:
        """Releases device and memory."""
        with blamed(self._told, "failed to close its session", ExecutionError):
            self._session.close()

    def _check(self, outputs: object) -> None:
        retained = {state.output for state in self.compiled.states}
        asked = [item.name for item in self.compiled.outputs if item.name not in retained]
        if not isinstance(outputs, Mapping):
            raise BackendError(
                f"{self._told} returned {type(outputs).__name__} from a step, not a mapping of its outputs"
            )
        missing = [name for name in asked if name not in outputs]
        if missing:
            raise BackendError(f"{self._told} returned no {', '.join(missing)} from a step, only {', '.join(outputs)}")
