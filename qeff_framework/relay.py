"""The relay: one plugin manager per selected backend, behind typed methods.

It holds the core's own hook implementations, the chosen extensions and exactly one backend, so that no hook can be
answered by another backend, and a failed registration is thrown away with its manager.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import pluggy

from qeff_framework.contracts import (
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    ExportRequest,
    Transform,
    TransformRequest,
)
from qeff_framework.errors import (
    BackendError,
    BackendIncompatibleError,
    CompileError,
    ExecutionError,
    ExportError,
    ExtensionError,
)
from qeff_framework.guarded_session import GuardedSession
from qeff_framework.hookspecs import PROJECT, BackendHooks
from qeff_framework.plugin_answers import blamed, check_compiled, check_exported, checked_fingerprint
from qeff_framework.plugin_api import Backend

T = TypeVar("T")

_HOOKS = ("transform", "export", "compile", "execute")
_MARK = f"{PROJECT}_impl"


class Relay:
    """Calls the hooks of one backend and checks what comes back. `descriptor` is `None` for the core alone."""

    def __init__(
        self, descriptor: Backend | None, *, implementation: object, extensions: Mapping[str, object], origin: str
    ) -> None:
        from qeff_framework.export.hooks import CoreHooks

        self.descriptor = descriptor
        #: Distribution and version, for messages.
        self.origin = origin
        #: The extensions that wrap the hooks, by name.
        self.extensions = dict(extensions)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(BackendHooks)
        self._manager.register(CoreHooks(), name="core")
        for name, extension in extensions.items():
            self._register(extension, f"extension '{name}'", ExtensionError)
        if descriptor is not None:
            self._register(implementation, self._told, BackendIncompatibleError)

    @property
    def name(self) -> str:
        """The backend's name; ``"core"`` without a backend."""
        return self.descriptor.name if self.descriptor else "core"

    @property
    def distribution(self) -> str:
        """Name of the package that provides the backend."""
        return self.origin.rpartition(" ")[0]

    @property
    def version(self) -> str:
        """Version of that package."""
        return self.origin.rpartition(" ")[2]

    @property
    def backend(self) -> Backend:
        """The descriptor. Raises `BackendError` on the core's own relay."""
        if self.descriptor is None:
            raise BackendError("the core alone has no backend descriptor; select a backend with get_backend(name)")
        return self.descriptor

    def transform(self, request: TransformRequest) -> list[Transform]:
        """The transforms of one stage: the core's, then extensions', the backend's own last."""
        with blamed(self._told, "failed to name its transforms", BackendError):
            results: list[Any] = self._manager.hook.transform(request=request)
        transforms: list[Transform] = []
        # pluggy calls the last registered first; the backend was registered last and its passes run last.
        for result in reversed(results):
            if not isinstance(result, Sequence) or not all(isinstance(item, Transform) for item in result):
                raise BackendError(
                    f"{self._told} returned {result!r} from transform, expected a list of objects with name, version and "
                    "__call__"
                )
            transforms.extend(result)
        return transforms

    def export(self, request: ExportRequest) -> ExportedModel:
        """Runs the export hook; the core answers when the backend does not."""
        with blamed(self._told, "failed to export", ExportError) if self.descriptor else nullcontext():
            exported = self._checked(self._manager.hook.export(request=request), ExportedModel, "export")
        check_exported(exported, request, self._told)
        return exported

    def compile(self, request: CompileRequest) -> CompiledModel:
        """Runs the compile hook."""
        with blamed(self._told, "failed to compile", CompileError):
            compiled = self._checked(self._manager.hook.compile(request=request), CompiledModel, "compile")
        check_compiled(compiled, request, self.name, self._told)
        return compiled

    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Runs the execute hook."""
        with blamed(self._told, "failed to load the program", ExecutionError):
            session = self._checked(self._manager.hook.execute(request=request), ExecutionSession, "execute")  # type: ignore[type-abstract]
        return GuardedSession(session, self._told)

    def fingerprint(self) -> dict[str, str]:
        """The versions that change what the backend compiles. Raises `BackendBrokenError` for anything else than texts."""
        return checked_fingerprint(self.backend, self._told)

    @property
    def _told(self) -> str:
        return f"backend '{self.name}' ({self.origin})"

    def _checked(self, result: object, expected: type[T], hook: str) -> T:
        if result is None:
            raise BackendError(f"{self._told} does not answer {hook}: it has no such hook, or its hook returned None")
        if not isinstance(result, expected):
            raise BackendError(f"{self._told} returned {type(result).__name__} from {hook}, not {expected.__name__}")
        return result

    def _register(self, plugin: object, told: str, error_type: type[BackendIncompatibleError | ExtensionError]) -> None:
        problems = _lint(plugin)
        if not problems:
            try:
                self._manager.register(plugin, name=told)
                self._manager.check_pending()
                return
            except pluggy.PluginValidationError as error:
                problems.append(" ".join(str(error).split()))
        raise error_type(f"{told} does not match the hook specifications: {'; '.join(problems)}")


def _lint(plugin: object) -> list[str]:
    """What pluggy accepts or ignores in silence, and would fail or do nothing later."""
    problems: list[str] = []
    found = 0
    for name in dir(type(plugin)):
        method = inspect.getattr_static(type(plugin), name)
        if not callable(method):
            continue
        if not hasattr(method, _MARK):
            if name in _HOOKS:
                problems.append(f"{name}() is named like a hook but is not marked with @hookimpl")
            continue
        found += 1
        if name not in _HOOKS:
            problems.append(f"unknown hook '{name}', the hooks are {', '.join(_HOOKS)}")
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if [(p.name, p.kind, p.default) for p in parameters] != [("request", plain, inspect.Parameter.empty)]:
            written = ", ".join(str(parameter) for parameter in parameters)
            problems.append(f"{name}({written}) must take exactly one plain argument named 'request'")
    if not found and not problems:
        problems.append("it has no method marked with @hookimpl")
    return problems
