"""`load_compiled`: from an artifact directory to a loaded program."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qeff_framework.artifacts import open_artifact
from qeff_framework.contracts import PACKAGE, CompiledModel, ExecuteRequest, ExecutionSession
from qeff_framework.errors import BackendNotInstalledError, ExecutionError, InputError, OptionError
from qeff_framework.options import OF_THE_COMPILATION, misplaced_options, parse_options
from qeff_framework.plugin_answers import texts_in
from qeff_framework.plugin_metadata import printable
from qeff_framework.progress import report
from qeff_framework.registry import normalize, registry
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    from qeff_framework.plugin_api import Backend
    from qeff_framework.relay import Relay
    from qeff_framework.runtime.runner import CompiledRunner


def load_compiled(
    path: str | os.PathLike[str],
    *,
    backend: str | Backend | type[Backend] | None = None,
    verify: Literal["quick", "full"] = "quick",
    extensions: Sequence[str] | None = None,
    **runtime_options: Any,
) -> CompiledRunner:
    """Loads an artifact directory on the device that it was compiled for.

    Args:
        path: what `QEFFBaseModel.compile` returned as ``directory``, or a copy of it.
        backend: the backend that has compiled it, for one that is not installed under its name: a descriptor, or
            ``"distribution:name"`` where several packages provide the name. `None` takes the name that the artifact holds.
        verify: how the files are compared with the manifest before anything is loaded. ``"quick"``: every listed file is there
            with its size; files up to 1 MiB, and larger ones whose time stamps have changed, have their recorded SHA-256; nothing
            unlisted stands in for a config or a tokenizer. ``"full"``: every file is read, and unlisted ones are refused.
        extensions: names of extensions; `None` reads ``QEFF_EXTENSIONS``.
        **runtime_options: the backend's runtime options (device, threads, ...).

    Raises:
        ArtifactError: `path` is not a compiled artifact, or its files differ from the manifest.
        BackendError: the backend that it was compiled for cannot be used here.
        ExecutionError: the program cannot be loaded, or there is none: the bundle of a dry run that was not compiled since.
    """
    if verify not in ("quick", "full"):
        raise OptionError(f"verify={verify!r} is neither 'quick' nor 'full'")
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"load_compiled takes the directory of a compiled artifact as a text or a Path, and a {type(path).__name__} was given"
        )
    directory = Path(path)
    open_artifact(directory, full=verify == "full")
    compiled = CompiledModel.load(directory)
    parts = compiled.parts()
    #: The programs of each part that are loaded: the part itself, unless it is cut into windows.
    programs = {name: part.windows() or {"": part} for name, part in parts.items()}
    for name, part in parts.items():
        for program in programs[name].values():
            _check_program_paths(program)
            _check_is_compiled(program, directory)
        if part.chained:
            from qeff_framework.runtime.chained_session import check_windows

            check_windows(part, programs[name])
    relay = _relay_for(compiled, backend, extensions)
    # A program that another backend has compiled says so itself.
    relays = {
        name: relay if part.backend == compiled.backend else _relay_for(part, None, extensions)
        for name, part in parts.items()
    }
    options = _runtime_options([relay, *relays.values()], runtime_options)
    with ExitStack() as loaded:
        sessions: dict[str, ExecutionSession] = {}
        for name, part in parts.items():
            chosen = relays[name]
            chosen.check_runtime(options[chosen.name], part.options or compiled.options)
            found: dict[str, ExecutionSession] = {}
            for window, program in programs[name].items():
                report(f"loading the program for {chosen.name}")
                found[window] = chosen.execute(ExecuteRequest(compiled=program, options=options[chosen.name]))
                loaded.callback(found[window].close)
            sessions[name] = _session_of(part, found)
        runner = task_spec(compiled.task).runner(
            sessions[""] if "" in sessions else ProgramSessions(compiled, sessions)
        )
        loaded.pop_all()
    return runner


def _session_of(compiled: CompiledModel, sessions: Mapping[str, ExecutionSession]) -> ExecutionSession:
    if not compiled.chained:
        return sessions[""]
    from qeff_framework.runtime.chained_session import ChainedSession

    return ChainedSession(compiled, sessions)


def _runtime_options(relays: Sequence[Relay], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of each backend by its name: those that it has, and those that none has, which are refused."""
    backends = {relay.name: relay.backend for relay in relays}
    known = {
        name: {field.name for field in dataclasses.fields(backend.runtime_options)}
        for name, backend in backends.items()
    }
    known_to_one = set().union(*known.values())
    return {
        name: parse_options(
            backend.runtime_options,
            {key: value for key, value in given.items() if key in known[name] or key not in known_to_one},
            owner=f"runtime of backend '{name}'",
            misplaced=misplaced_options(backend.options, OF_THE_COMPILATION),
        )
        for name, backend in backends.items()
    }


def backend_of(compiled: CompiledModel) -> str:
    """The name of the backend that has compiled `compiled`, with the package where that is known and installed."""
    package = compiled.metadata.get(PACKAGE)
    known = isinstance(package, str) and any(
        (normalize(found.distribution), normalize(found.name)) == (normalize(package), normalize(compiled.backend))
        for found in registry.installed()
    )
    return f"{package}:{compiled.backend}" if known else compiled.backend


def _relay_for(
    compiled: CompiledModel, backend: str | Backend | type[Backend] | None, extensions: Sequence[str] | None
) -> Relay:
    try:
        relay = registry.get(
            backend_of(compiled) if backend is None else backend, extensions=extensions, stage="execute"
        )
    except BackendNotInstalledError as error:
        raise BackendNotInstalledError(
            f"{error}; {compiled.directory} was compiled for it. A backend that is a class of your own is passed as "
            "load_compiled(..., backend=YourBackend)"
        ) from error
    if normalize(relay.name) != normalize(compiled.backend):
        raise OptionError(
            f"{compiled.directory} was compiled for backend '{compiled.backend}', not for '{relay.name}'; leave backend out"
        )
    package = compiled.metadata.get(PACKAGE)
    if backend is None and package and relay.package and normalize(str(package)) != normalize(relay.package):
        raise BackendNotInstalledError(
            f"{compiled.directory} was compiled by backend '{compiled.backend}' of {printable(package)}, which is not "
            f"installed; here '{relay.name}' is of {relay.package}. Install {printable(package)}, or name the backend "
            f"'{relay.package}:{relay.name}' if it runs the same programs"
        )
    return relay


def _check_program_paths(compiled: CompiledModel) -> None:
    """Raises `ArtifactCorruptError` for an existing file outside of the artifact that its program names.

    Backends read `program` as they like; this guards those that join names without `CompiledModel.path`.
    """
    for text in texts_in(compiled.program):
        if text and "\0" not in text and os.path.lexists(compiled.directory / text):
            compiled.path(text)


def _check_is_compiled(compiled: CompiledModel, directory: Path) -> None:
    if holds_no_program(compiled):
        remedy = "compile the bundle where the compiler is, or " if compiled.dry_run_result else ""
        raise ExecutionError(
            f"{directory} was made with dry_run: it holds the compiler's inputs and no program; {remedy}compile without dry_run"
        )


def holds_no_program(compiled: CompiledModel) -> bool:
    """It was made with ``dry_run``, and its bundle has not been compiled since."""
    is_compiled = bool(compiled.dry_run_result) and compiled.path(compiled.dry_run_result).is_file()
    return bool(compiled.metadata.get("dry_run")) and not is_compiled
