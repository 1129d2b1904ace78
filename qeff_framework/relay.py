"""The relay: one plugin manager per selected backend, behind typed methods.

It holds the core's own hook implementations, the chosen extensions and exactly one backend, so that no hook can be
answered by another backend, and a failed registration is thrown away with its manager.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pluggy

from qeff_framework.contracts import (
    Capabilities,
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    ExportRequest,
    Transform,
    TransformRequest,
)
from qeff_framework.errors import BackendError, BackendIncompatibleError, ExtensionError
from qeff_framework.guarded_hooks import HOOKS, guarded_hooks, hook_name, marked_methods
from qeff_framework.guarded_session import GuardedSession, guard_session
from qeff_framework.hookspecs import PROJECT, BackendHooks
from qeff_framework.options import CompileOptions, RuntimeOptions
from qeff_framework.plugin_answers import (
    check_compiled,
    check_compiler,
    check_exported,
    check_runtime,
    check_weights,
    checked_capabilities,
    checked_fingerprint,
)
from qeff_framework.plugin_api import Backend

#: What the hooks return, beside `transform`.
_RESULTS: Final[Mapping[str, type]] = {"export": ExportedModel, "compile": CompiledModel, "execute": ExecutionSession}
#: Hooks of the two classes of a backend that splits its implementation.
EXECUTE_HOOKS = ("execute",)
COMPILE_HOOKS = tuple(name for name in HOOKS if name not in EXECUTE_HOOKS)


class Relay:
    """Calls the hooks of one backend and checks what comes back. `descriptor` is `None` for the core alone."""

    def __init__(
        self,
        descriptor: Backend | None,
        *,
        implementation: object,
        execute_implementation: object = None,
        extensions: Mapping[str, object],
        origin: str,
        package: str = "",
        extension_origins: Mapping[str, str] | None = None,
        source_modules: Sequence[str] = (),
    ) -> None:
        from qeff_framework.export.hooks import CoreHooks

        self.descriptor = descriptor
        #: Distribution and version, for messages.
        self.origin = origin
        #: The package that provides the backend; empty for one that was passed as an object or registered by hand.
        self.package = package
        #: Modules of the backend whose source may change while the backend's versions stay: it is part of cache keys.
        self.source_modules = tuple(source_modules)
        #: Whether the backend answers the export hook, or wraps it.
        self.has_export = "export" in [hook_name(*method) for method in marked_methods(implementation)]
        #: The extensions that wrap the hooks, by name.
        self.extensions = dict(extensions)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(BackendHooks)
        self._manager.register(guarded_hooks(CoreHooks(), None, BackendError, self._checked), name="core")
        for name, extension in extensions.items():
            package = (extension_origins or {}).get(name, "an unknown package")
            self._register(extension, f"extension '{name}' ({package})", ExtensionError)
        if descriptor is None:
            return
        if not descriptor.execute_implementation:
            self._register(implementation, self._told, BackendIncompatibleError)
            return
        for plugin, hooks in ((implementation, COMPILE_HOOKS), (execute_implementation, EXECUTE_HOOKS)):
            if plugin is not None:
                self._register(plugin, self._told, BackendIncompatibleError, hooks=hooks)

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
        results: list[list[Transform]] = self._manager.hook.transform(request=request)
        # pluggy calls the last registered first; the backend was registered last and its passes run last.
        return [transform for result in reversed(results) for transform in result]

    def export(self, request: ExportRequest) -> ExportedModel:
        """Runs the export hook; the core answers when the backend does not."""
        exported: ExportedModel = self._answer("export", request)
        return exported

    def compile(self, request: CompileRequest) -> CompiledModel:
        """Runs the compile hook."""
        # Whoever makes a request may not know whom it reaches.
        compiled: CompiledModel = self._answer("compile", dataclasses.replace(request, backend=self.name))
        return compiled

    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Runs the execute hook."""
        session: ExecutionSession = self._answer("execute", request)
        return session

    def fingerprint(self) -> dict[str, str]:
        """The versions that change what the backend compiles. Raises `BackendBrokenError` for anything else than texts."""
        return checked_fingerprint(self.backend, self._told)

    def capabilities_for(self, options: CompileOptions) -> Capabilities:
        """What the backend can be asked for with `options`. Raises `BackendBrokenError` for another answer than that."""
        return checked_capabilities(self.backend, options, self._told)

    def check_compiler(self, options: CompileOptions) -> None:
        """Raises `BackendUnavailableError` where programs of these options cannot be compiled on this machine."""
        check_compiler(self.backend, options, self._told)

    def check_weights(self, options: CompileOptions, numbers: int) -> None:
        """Raises `CompileError` where no program with so many numbers in its weights can be made with these options."""
        check_weights(self.backend, options, numbers, self._told)

    def check_runtime(self, runtime: RuntimeOptions, compiled_with: Mapping[str, Any]) -> None:
        """Raises `OptionError` for runtime options that do not go with a program of these compile options."""
        check_runtime(self.backend, runtime, compiled_with, self._told)

    @property
    def _told(self) -> str:
        return f"backend '{self.name}' ({self.origin})"

    def _answer(self, hook: str, request: object) -> Any:
        result = getattr(self._manager.hook, hook)(request=request)
        if result is None:
            dropped = f", or an extension dropped its result ({', '.join(self.extensions)})" if self.extensions else ""
            raise BackendError(
                f"{self._told} does not answer {hook}: it has no such hook, or its hook returned None{dropped}"
            )
        return result

    def _checked(self, hook: str, result: object, request: Any, told: str) -> object:
        """See `CheckResult`: called for each plugin's result, so that it is blamed on the plugin that returned it."""
        if not isinstance(result, _RESULTS[hook]):
            raise BackendError(f"{told} returned {type(result).__name__} from {hook}, not {_RESULTS[hook].__name__}")
        if isinstance(result, ExportedModel):
            check_exported(result, request, told)
        elif isinstance(result, CompiledModel):
            check_compiled(result, request, self.name, told)
        elif isinstance(result, ExecutionSession) and not isinstance(result, GuardedSession):
            return guard_session(result, request, told)
        return result

    def _register(
        self,
        plugin: object,
        told: str,
        error_type: type[BackendIncompatibleError | ExtensionError],
        *,
        hooks: Sequence[str] = HOOKS,
    ) -> None:
        problems = _lint(plugin, hooks)
        if not problems:
            try:
                # Validated as it is, and called through functions that name it when it fails.
                name = f"{told}: {', '.join(hooks)}"
                self._manager.register(plugin, name=name)
                self._manager.check_pending()
                self._manager.unregister(plugin)
                self._manager.register(guarded_hooks(plugin, told, error_type, self._checked), name=name)
                return
            except pluggy.PluginValidationError as error:
                problems.append(" ".join(str(error).split()))
        raise error_type(f"{told} does not match the hook specifications: {'; '.join(problems)}")


def _lint(plugin: object, hooks: Sequence[str]) -> list[str]:
    """What pluggy accepts or ignores in silence, and would fail or do nothing later."""
    problems: list[str] = []
    marked = dict(marked_methods(plugin))
    for method_name, marks in marked.items():
        name, method = hook_name(method_name, marks), inspect.getattr_static(type(plugin), method_name)
        if marks.get("hookwrapper"):
            problems.append(
                f"{method_name}() is marked with hookwrapper=True; mark it with wrapper=True and return its result"
            )
        if name not in HOOKS:
            problems.append(f"unknown hook '{name}', the hooks are {', '.join(HOOKS)}")
            continue
        if name not in hooks:
            problems.append(
                f"{name}() of {type(plugin).__name__} would not be called: the descriptor's execute_implementation has the hook "
                "execute, and implementation the other ones"
            )
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if [(p.name, p.kind, p.default) for p in parameters] != [("request", plain, inspect.Parameter.empty)]:
            written = ", ".join(str(parameter) for parameter in parameters)
            problems.append(f"{name}({written}) must take exactly one plain argument named 'request'")
    problems += [
        f"{name}() is named like a hook but is not marked with @hookimpl"
        for name in HOOKS
        if name not in marked and callable(inspect.getattr_static(type(plugin), name, None))
    ]
    if not marked and not problems:
        problems.append("it has no method marked with @hookimpl")
    return problems
