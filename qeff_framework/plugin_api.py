"""Everything that a backend or an extension may import from the framework, and nothing else.

The stable surface: names here change only with the plugin API version (`API_VERSION`). A new minor version adds, a
new major version gets a new entry-point group. Importing this module loads neither torch nor onnx.

A backend package declares one entry point per backend::

    [project.entry-points."qeff_framework.backends.v1"]
    acme = "acme_backend:AcmeBackend"

It resolves to a `Backend` subclass or instance, the *descriptor*: light, quick to import. Its `implementation` names
the class with the hooks, which is imported when the backend is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from qeff_framework.contracts import (
    Capabilities,
    Check,
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    ExportRequest,
    Probe,
    Specialization,
    StateSpec,
    Status,
    Task,
    TensorSpec,
    Transform,
    TransformRequest,
)
from qeff_framework.errors import (
    BackendError,
    BackendUnavailableError,
    CompileError,
    ExecutionError,
    ExportError,
    InputError,
    OptionError,
    QEFFError,
    UnsupportedModelError,
)
from qeff_framework.hookspecs import hookimpl
from qeff_framework.options import CompileOptions, RuntimeOptions, option

#: ``major.minor`` of this surface. The major is also in the entry-point group.
API_VERSION = "1.0"

BACKEND_GROUP = "qeff_framework.backends.v1"
EXTENSION_GROUP = "qeff_framework.extensions.v1"


class Backend:
    """Descriptor of a backend: what can be told without loading it.

    Example::

        class AcmeBackend(Backend):
            name = "acme"
            summary = "Acme NPU through the Acme compiler"
            options = AcmeOptions
            capabilities = Capabilities(tasks=frozenset({"causal-lm"}))
            implementation = "acme_backend.hooks:AcmeHooks"

            def probe(self) -> Probe: ...

            def fingerprint(self) -> dict[str, str]: ...
    """

    #: The name that users choose; must equal the entry point's name.
    name: ClassVar[str]
    #: The plugin API that the backend was written for.
    api: ClassVar[str] = API_VERSION
    #: One line for listings.
    summary: ClassVar[str] = ""
    #: Options of `compile`; a frozen, keyword-only dataclass.
    options: ClassVar[type[CompileOptions]] = CompileOptions
    #: Options of `execute`; a frozen, keyword-only dataclass.
    runtime_options: ClassVar[type[RuntimeOptions]] = RuntimeOptions
    #: What any options of the backend allow, see `capabilities_for`.
    capabilities: ClassVar[Capabilities]
    #: ``"package.module:Class"`` with the hook implementations; instantiated without arguments on first use.
    implementation: ClassVar[str]

    def probe(self) -> Probe:
        """Looks at this machine: what can be compiled and executed here, and the remedy where it cannot.

        Quick (well under a second where possible), without side effects. Code that may crash the process or hang
        belongs into a subprocess with a time limit.
        """
        raise NotImplementedError(f"backend '{self.name}' does not implement probe()")

    def capabilities_for(self, options: CompileOptions) -> Capabilities:  # noqa: ARG002 - for backends that override it
        """What can be asked for with `options`, an instance of `self.options`; the rest is refused before any work starts.

        For a backend with several kinds of targets; `Capabilities.scope` names the one. Loads nothing heavy.
        """
        return self.capabilities

    def fingerprint(self) -> Mapping[str, str]:
        """Versions that change the compiled program: the backend's own, the SDK's, the compiler's. Part of cache
        keys.
        """
        raise NotImplementedError(f"backend '{self.name}' does not implement fingerprint()")


__all__ = [
    "API_VERSION",
    "BACKEND_GROUP",
    "EXTENSION_GROUP",
    "Backend",
    "BackendError",
    "BackendUnavailableError",
    "Capabilities",
    "Check",
    "CompileError",
    "CompileOptions",
    "CompileRequest",
    "CompiledModel",
    "ExecuteRequest",
    "ExecutionError",
    "ExecutionSession",
    "ExportError",
    "ExportRequest",
    "ExportedModel",
    "InputError",
    "OptionError",
    "Probe",
    "QEFFError",
    "RuntimeOptions",
    "Specialization",
    "StateSpec",
    "Status",
    "Task",
    "TensorSpec",
    "Transform",
    "TransformRequest",
    "UnsupportedModelError",
    "hookimpl",
    "option",
]
