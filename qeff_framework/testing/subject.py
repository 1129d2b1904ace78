"""The backend that is checked, and the way of the framework from a graph to a session."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qeff_framework.contracts import (
    Capabilities,
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    Probe,
    Specialization,
    Transform,
    TransformRequest,
)
from qeff_framework.errors import BackendUnavailableError, OptionError
from qeff_framework.options import parse_options
from qeff_framework.plugin_api import Backend
from qeff_framework.registry import registry
from qeff_framework.testing.checks import BrokenPromiseError, NotClaimedError, UnavailableError
from qeff_framework.testing.settings import Settings, Tolerance

if TYPE_CHECKING:
    import onnx_ir

    from qeff_framework.relay import Relay
    from qeff_framework.testing.programs import SmallProgram


class Subject:
    """A backend under test, its settings, and a folder to work in. Exports and programs are made once and shared by checks.

    Use it as a context manager: sessions and models that it has opened are closed in the end.

    Args:
        backend: name of an installed backend, or a descriptor.
        settings: `None` reads the ``conformance.toml`` of the backend's package.
        workspace: an existing folder.
    """

    def __init__(
        self, backend: str | Backend | type[Backend], *, settings: Settings | None = None, workspace: Path
    ) -> None:
        self.asked = backend
        if isinstance(backend, str):
            self.backend = registry.descriptor(backend)
        else:
            self.backend = backend() if isinstance(backend, type) else backend
        self.settings = Settings.of(self.backend) if settings is None else settings
        self.workspace = workspace.resolve()
        self.stack = contextlib.ExitStack()
        self._programs: dict[object, CompiledModel | Exception] = {}
        #: What groups keep between their checks, by a key of theirs.
        self.shared: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shared.clear()
        self.stack.close()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def relay(self) -> Relay:
        """The backend's hooks as the framework calls them; loads its implementation."""
        return registry.get(self.asked, extensions=())

    @property
    def origin(self) -> str:
        """Package and version, as messages tell it."""
        try:
            return self.relay.origin
        except Exception:  # noqa: BLE001 -- every check that needs the hooks reports it
            return "could not be loaded"

    @property
    def capabilities(self) -> Capabilities:
        """Those that hold for the settings' options."""
        return self.relay.capabilities_for(self.options())

    @cached_property
    def probe(self) -> Probe:
        """What the backend says that it can do here."""
        from qeff_framework.plugin_answers import checked_probe

        return checked_probe(self.backend, f"backend '{self.backend.name}'")

    @property
    def tolerance(self) -> Tolerance:
        """How far numbers may be from the reference."""
        return self.settings.tolerance

    def versions(self) -> dict[str, str]:
        """Versions of the framework, Python and the backend's fingerprint."""
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            own = version("qeff-framework")
        except PackageNotFoundError:
            own = "not installed"
        try:
            fingerprint = self.relay.fingerprint()
        except Exception as error:  # noqa: BLE001 -- a check of its own reports it
            fingerprint = {"fingerprint": f"cannot be read: {type(error).__name__}"}
        return {"qeff-framework": own, "python": platform.python_version(), **fingerprint}

    # --- options ------------------------------------------------------------------------------------------------------

    def options(self, **changes: Any) -> Any:
        """Compile options of the settings with `changes`. Raises `OptionError` for a combination that is refused."""
        values = {**self.settings.options, **changes}
        return parse_options(self.backend.options, values, owner=f"backend '{self.backend.name}'")

    def runtime_options(self, **changes: Any) -> Any:
        """Runtime options of the settings with `changes`."""
        values = {**self.settings.runtime_options, **changes}
        owner = f"runtime of backend '{self.backend.name}'"
        return parse_options(self.backend.runtime_options, values, owner=owner)

    def need(self, claimed: bool, what: str) -> None:
        """Raises `NotClaimedError` unless `claimed`."""
        if not claimed:
            raise NotClaimedError(f"it does not claim {what}")

    def need_accepted(self, **options: Any) -> None:
        """Raises `NotClaimedError` where these options are refused beside those of the settings, as for another target."""
        try:
            self.options(**options)
        except OptionError as error:
            raise NotClaimedError(f"it does not claim {', '.join(options)} with the settings: {error}") from error

    # --- places -------------------------------------------------------------------------------------------------------

    def folder(self, name: str = "work") -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{self.backend.name}-{name}-", dir=self.workspace))

    @contextlib.contextmanager
    def store(self, root: Path | None = None) -> Iterator[Path]:
        """Makes the artifact store lie in the workspace, or at `root`, for the duration of a ``with`` block."""
        root = root or self.workspace / "home"
        with environment(QEFF_HOME=str(root)):
            yield root

    # --- programs -----------------------------------------------------------------------------------------------------

    def export(self, program: SmallProgram) -> ExportedModel:
        """The export of `program`, made when first asked for; runs over several backends share it."""
        directory = self.workspace / "exports" / program.name
        if (directory / ExportedModel.FILE).is_file():
            return ExportedModel.load(directory)
        staging = self.folder("export") / program.name
        program.export(staging)
        directory.parent.mkdir(exist_ok=True)
        staging.rename(directory)
        return ExportedModel.load(directory)

    def passes(
        self, exported: ExportedModel, specializations: tuple[Specialization, ...], options: Any
    ) -> list[Transform]:
        """The lowering passes that the backend names."""
        request = TransformRequest(stage="onnx", task=exported.task, options=options, specializations=specializations)
        with self.available("name its transforms"):
            return self.relay.transform(request)

    def compiled(self, program: SmallProgram, **changes: Any) -> CompiledModel:
        """`program` compiled with `changes` to the options, made when first asked for.

        Raises:
            UnavailableError: what the compiler needs is not here.
        """
        key = (program.name, repr(sorted(changes.items())))
        if key not in self._programs:
            try:
                self._programs[key] = self.compile(program, **changes)
            except Exception as error:  # noqa: BLE001 -- it is raised again for every check that needs the program
                self._programs[key] = error
        found = self._programs[key]
        if isinstance(found, Exception):
            raise found
        return found

    def compile(
        self,
        program: SmallProgram,
        *,
        directory: Path | None = None,
        dry_run: bool = False,
        log_dir: Path | None = None,
        **changes: Any,
    ) -> CompiledModel:
        """Lowers and compiles `program` as the framework does: in a staging directory, which is then renamed.

        Args:
            program: what to compile.
            directory: where the program is published; it does not exist yet. A new folder by default.
            dry_run: write the compiler's inputs only.
            log_dir: see `CompileRequest.log_dir`.
            **changes: options beside those of the settings.
        """
        from qeff_framework.lowering.stored_weights import load_portable

        exported, options = self.export(program), self.options(**changes)
        passes = self.passes(exported, program.specializations, options)
        model = load_portable(exported.model_path)
        applied = tuple(f"{each.name}@{each.version}" for each in passes if each(model))
        return self.compile_model(
            exported,
            model,
            program.specializations,
            options,
            applied=applied,
            directory=directory,
            dry_run=dry_run,
            log_dir=log_dir,
        )

    def compile_model(
        self,
        exported: ExportedModel,
        model: onnx_ir.Model,
        specializations: tuple[Specialization, ...],
        options: Any,
        *,
        applied: tuple[str, ...] = (),
        directory: Path | None = None,
        dry_run: bool = False,
        log_dir: Path | None = None,
    ) -> CompiledModel:
        """Calls the compile hook on a lowered graph and publishes what it has written."""
        place = self.folder("program")
        staging, published = place / "staging", directory or place / "published"
        staging.mkdir()
        with self.available("compile"):
            compiled = self.relay.compile(
                CompileRequest(
                    exported=exported,
                    model=model,
                    transforms=applied,
                    specializations=specializations,
                    options=options,
                    output_dir=staging,
                    dry_run=dry_run,
                    backend=self.relay.name,
                    key=self._key(exported, specializations, options, dry_run=dry_run),
                    log_dir=log_dir or place / "logs",
                )
            )
        metadata = {**exported.metadata, **compiled.metadata, "dry_run": dry_run}
        dataclasses.replace(compiled, transforms=applied, options=dataclasses.asdict(options), metadata=metadata).save()
        published.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(published)
        return CompiledModel.load(published)

    def _key(self, exported: ExportedModel, specializations: Any, options: Any, *, dry_run: bool) -> str:
        """What stands for the key in the artifact store: the same for what is the same."""
        from qeff_framework.artifacts import cache_key

        return cache_key(
            {
                "export": exported.metadata["model_name"],
                "specializations": [dataclasses.asdict(item) for item in specializations],
                "options": repr(options),
                "dry_run": dry_run,
            }
        )

    def open(self, compiled: CompiledModel, **changes: Any) -> ExecutionSession:
        """A session of `compiled`, which is closed with the subject at the latest."""
        options = self.runtime_options(**changes)
        self.relay.check_runtime(options, compiled.options)
        with self.available("execute"):
            session = self.relay.execute(ExecuteRequest(compiled=compiled, options=options))
        self.stack.callback(_close_quietly, session)
        return session

    def session(self, program: SmallProgram, **changes: Any) -> ExecutionSession:
        """A session of `program` that checks share; its states are empty."""
        key = f"session of {program.name} {sorted(changes.items())!r}"
        if key not in self.shared:
            self.shared[key] = self.open(self.compiled(program, **changes))
        session: ExecutionSession = self.shared[key]
        session.reset()
        return session

    @contextlib.contextmanager
    def available(self, action: str) -> Iterator[None]:
        """Turns an honest `BackendUnavailableError` into `UnavailableError`.

        With default options the probe must have said that it cannot; otherwise the error is a broken promise.
        """
        try:
            yield
        except BackendUnavailableError as error:
            said = self.probe.can_execute if action == "execute" else self.probe.can_compile
            if said and not self.settings.options:
                raise BrokenPromiseError(
                    f"probe() says that it can {action} here, but it raises BackendUnavailableError: {error}; correct probe()"
                ) from error
            raise UnavailableError(str(error)) from error


def _close_quietly(session: ExecutionSession) -> None:
    with contextlib.suppress(Exception):
        session.close()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for the duration of a ``with`` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def child_environment() -> dict[str, str]:
    """Variables for a fresh Python that finds the modules that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def import_line(backend: Backend) -> str:
    """A Python statement that makes the descriptor `backend`."""
    return f"from {type(backend).__module__} import {type(backend).__qualname__.partition('.')[0]}"
