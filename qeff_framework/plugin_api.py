"""Everything that a backend or an extension may import from the framework, and nothing else.

The stable surface: names here change only with the plugin API version (`API_VERSION`). A new minor version adds, a
new major version gets a new entry-point group. Importing this module loads neither torch nor onnx.

The toolkits of `TOOLKITS` belong to this surface. They are packages of their own, loaded when they are first asked for:
``from qeff_framework.sessions import BaseSession`` and ``from qeff_framework.plugin_api import sessions`` both work.

A backend package declares one entry point per backend::

    [project.entry-points."qeff_framework.backends.v1"]
    acme = "acme_backend:AcmeBackend"

It resolves to a `Backend` subclass or instance, the *descriptor*: light, quick to import. Its `implementation` names
the class with the hooks, which is imported when the backend is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.contracts import (
    AdapterRoom,
    Capabilities,
    Check,
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    ExportRequest,
    LowRankDelta,
    PackedMatrix,
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
from qeff_framework.options import (
    AttentionOptions,
    CompileOptions,
    LayerWindowOptions,
    MicroscalingOptions,
    RuntimeOptions,
    option,
)

if TYPE_CHECKING:
    from pathlib import Path

    # Not in `__all__`: ``import *`` must stay light.
    from qeff_framework import lowering as lowering  # noqa: PLC0414 -- re-exported
    from qeff_framework import sessions as sessions  # noqa: PLC0414 -- re-exported
    from qeff_framework import toolchains as toolchains  # noqa: PLC0414 -- re-exported

#: ``major.minor`` of this surface. The major is also in the entry-point group.
API_VERSION = "1.2"

BACKEND_GROUP = "qeff_framework.backends.v1"
EXTENSION_GROUP = "qeff_framework.extensions.v1"

#: Packages of ``qeff_framework`` with what backends share: ``lowering`` for turning the portable graph into what a compiler
#: takes, ``sessions`` for running programs, ``toolchains`` for compilers and probes as child processes.
TOOLKITS = ("lowering", "sessions", "toolchains")


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
    #: The same for a class with the hook `execute` alone, where running a program must not import what compiling needs.
    #: `implementation` has the other hooks then. "": it has all of them.
    execute_implementation: ClassVar[str] = ""

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

    def check_compiler(self, options: CompileOptions) -> None:
        """Raises `BackendUnavailableError` where the compiler for `options` is not on this machine, with the remedy.

        Called before a model is exported for a program that does not exist yet, but for a dry run. Quick: it looks whether files
        or packages are there and runs nothing.

        Args:
            options: an instance of `self.options`.
        """

    def check_weights(self, options: CompileOptions, numbers: int) -> None:
        """Raises `CompileError` where the weights alone are more than a device can hold.

        Called for models that generate text with one program, once their checkpoint has been opened and before they are traced.
        The graph is not there yet: `compile` is where a backend looks at all that a program holds.

        Args:
            options: an instance of `self.options`.
            numbers: how many the program's weights have; those that stand at two places count once.
        """

    def check_runtime(self, runtime: RuntimeOptions, compiled_with: Mapping[str, Any]) -> None:
        """Raises `OptionError` or `ValueError` for runtime options that do not go with the compile options of a program.

        Called before any work when both are given at once, as by ``qeff generate MODEL``, and before a program is loaded.

        Args:
            runtime: an instance of `self.runtime_options`.
            compiled_with: the compile options by name, as an artifact records them.
        """

    def fingerprint(self) -> Mapping[str, str]:
        """Versions that change the compiled program: the backend's own, the SDK's, the compiler's. Part of cache
        keys.
        """
        raise NotImplementedError(f"backend '{self.name}' does not implement fingerprint()")


def announce_memory(what: str, needed: float, *, least: float = 0, remedy: str = "") -> None:
    """Says what a compilation takes in memory, before it starts; warns where less is free.

    Args:
        what: the work, as the subject of a sentence, such as ``"compiling for my_backend"``.
        needed: estimate of the peak in bytes, without mapped files.
        least: bytes that the work certainly holds at one time.
        remedy: what takes less, such as ``"use precision='w4'"``.

    Raises:
        ArtifactError: the machine, or the container, has less than `least` in all.
    """
    from qeff_framework.artifacts.memory import announce_memory as announce

    announce(what, needed, least=least, remedy=remedy)


def require_space(directory: Path, needed: int, what: str) -> None:
    """Refuses to start what would fill the disk.

    `lowering.write_weights` and `lowering.write_tensors` do so themselves.

    Args:
        directory: where it is written.
        needed: bytes.
        what: the work, as the subject of a sentence, such as ``"writing the table of embeddings"``.

    Raises:
        ArtifactError: the file system of `directory` has fewer bytes left.
    """
    from qeff_framework.artifacts.disk import require_space as require

    require(directory, needed, what)


def prompt_ids(exported: ExportedModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as `generate` reads prompts, for calibration.

    Special tokens are those that the checkpoint adds; a text that holds its start token already gets no second one.

    Raises:
        InputError: the checkpoint has no tokenizer.
        CheckpointError: its tokenizer cannot be read.
    """
    from qeff_framework.tokenization import encode_prompt, load_tokenizer

    folder = exported.directory / "tokenizer"
    if not folder.is_dir():
        raise InputError("the checkpoint has no tokenizer, so that texts cannot become token ids")
    tokenizer = load_tokenizer(folder)
    return [encode_prompt(tokenizer, text) for text in texts]


def __getattr__(name: str) -> Any:
    if name not in TOOLKITS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return importlib.import_module(f"qeff_framework.{name}")


__all__ = [
    "API_VERSION",
    "BACKEND_GROUP",
    "EXTENSION_GROUP",
    "TOOLKITS",
    "AdapterRoom",
    "AttentionOptions",
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
    "LayerWindowOptions",
    "LowRankDelta",
    "MicroscalingOptions",
    "OptionError",
    "PackedMatrix",
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
    "announce_memory",
    "hookimpl",
    "option",
    "prompt_ids",
    "require_space",
]
