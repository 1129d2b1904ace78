"""Discovery and selection of backends.

Listing reads package metadata and imports nothing. Selecting loads the one backend that was asked for: first its light
descriptor, then, on first use, its implementation. Backends that are not selected never run.

Environment variables, read at each call:

- ``QEFF_BACKEND``: the backend to use when none is named.
- ``QEFF_BACKENDS``: only these may be used (comma separated backend or distribution names; empty: none).
- ``QEFF_DISABLE_BACKENDS``: these may not be used.
- ``QEFF_EXTENSIONS``: extensions that wrap the hooks of every backend.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qeff_framework.errors import (
    BackendBlockedError,
    BackendBrokenError,
    BackendConflictError,
    BackendError,
    BackendIncompatibleError,
    BackendNotInstalledError,
    BackendUnavailableError,
    ExtensionError,
    UnknownBackendError,
    UnknownExtensionError,
)
from qeff_framework.options import CLOSE
from qeff_framework.plugin_answers import check_descriptor, checked_probe, error_line
from qeff_framework.plugin_api import API_VERSION, BACKEND_GROUP, EXTENSION_GROUP, Backend
from qeff_framework.plugin_imports import import_problem, probe_elsewhere, try_imports
from qeff_framework.plugin_metadata import (
    UNKNOWN_PACKAGE,
    entry_points,
    is_backend_name,
    is_editable,
    origin_of,
    package_name,
    package_summary,
    package_version,
    printable,
)
from qeff_framework.relay import Relay

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

    from qeff_framework.contracts import Probe

logger = logging.getLogger(__name__)

_GROUP_STEM, _, _API_MAJOR = BACKEND_GROUP.rpartition(".v")
ALLOW_VARIABLE = "QEFF_BACKENDS"
DENY_VARIABLE = "QEFF_DISABLE_BACKENDS"
DEFAULT_VARIABLE = "QEFF_BACKEND"
EXTENSIONS_VARIABLE = "QEFF_EXTENSIONS"

BackendStatus = Literal["available", "blocked", "incompatible", "conflict"]
#: What a backend is selected for.
Stage = Literal["compile", "execute"]


@dataclass(frozen=True, kw_only=True)
class InstalledBackend:
    """What the package metadata tells about one backend. Whether it can be imported is not known before it is used."""

    name: str
    distribution: str
    version: str
    summary: str
    #: ``"module:attribute"`` of the descriptor.
    target: str
    api_major: str
    status: BackendStatus
    #: Why the status is not ``"available"``.
    reason: str = ""


def normalize(name: str) -> str:
    """Backend names differ neither by case nor by ``-`` and ``_``."""
    return name.strip().lower().replace("-", "_")


class Registry:
    """All backends that this process can see: installed ones by entry point, and descriptors registered by hand."""

    def __init__(self) -> None:
        self._registered: dict[str, Backend] = {}

    # --- discovery ----------------------------------------------------------------------------------------------------

    def installed(self) -> tuple[InstalledBackend, ...]:
        """Every backend that a package provides, sorted by name. Reads metadata only."""
        entries = self._entries()
        return tuple(self._describe(entry, entries) for entry in entries)

    def register(self, backend: Backend | type[Backend]) -> Backend:
        """Makes a descriptor selectable by name without installing a package. It takes precedence over installed
        ones.
        """
        descriptor = _as_descriptor(backend, "registered by hand")
        _check_api(descriptor, "registered by hand")
        self._registered[normalize(descriptor.name)] = descriptor
        return descriptor

    @contextlib.contextmanager
    def registered(self, backend: Backend | type[Backend]) -> Iterator[Backend]:
        """Registers a descriptor for the duration of a ``with`` block."""
        before = dict(self._registered)
        try:
            yield self.register(backend)
        finally:
            self._registered = before

    # --- selection ----------------------------------------------------------------------------------------------------

    def descriptor(self, name: str, *, tried: bool = False) -> Backend:
        """Loads the descriptor of one backend, or raises the error that says why it cannot be used.

        Args:
            name: of the backend.
            tried: import it in a process of its own first, so that one that nobody has chosen neither hangs nor ends this one.
        """
        wanted = normalize(name)
        if wanted in self._registered:
            return self._registered[wanted]
        entry = self._select(name)
        origin = origin_of(entry)
        try:
            problem = import_problem(entry.module) if tried else ""
            loaded = None if problem else entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise BackendBrokenError(
                f"backend '{name}' ({origin}) is installed but could not be imported: {error_line(error)}; "
                f"reinstall or repair {package_name(entry)}, `qeff doctor {name}` shows more"
            ) from error
        if problem:
            raise BackendBrokenError(
                f"backend '{name}' ({origin}) is installed but could not be imported: {problem}; reinstall or repair "
                f"{package_name(entry)}, or leave it out with {DENY_VARIABLE}={entry.name}"
            )
        descriptor = _as_descriptor(loaded, origin)
        if normalize(descriptor.name) != normalize(entry.name):
            raise BackendIncompatibleError(
                f"backend '{name}' ({origin}): its entry point is named '{entry.name}' but the descriptor says "
                f"'{descriptor.name}'; its author has to make them equal"
            )
        _check_api(descriptor, origin)
        return descriptor

    def probe(self, name: str) -> Probe:
        """What a backend says that it can do here. An installed one is asked in a process of its own, which it may take down.

        Raises:
            BackendError: it cannot be loaded, or its answer is not a `Probe`.
        """
        descriptor = self.descriptor(name, tried=True)
        told = f"backend '{descriptor.name}' ({self._origin_of(name)})"
        if normalize(name) in self._registered:
            return checked_probe(descriptor, told)
        answer = probe_elsewhere(name)
        if isinstance(answer, str):
            raise BackendBrokenError(f"{told} failed in probe(): {answer}")
        # One that raised an exception there raises it here as well, with its traceback.
        return answer or checked_probe(descriptor, told)

    def get(
        self,
        name: str | Backend | type[Backend] | None = None,
        *,
        extensions: Sequence[str] | None = None,
        tried: bool = False,
        stage: Stage | None = None,
    ) -> Relay:
        """Selects a backend and returns its relay, ready to be called.

        Args:
            name: a backend name, ``"distribution:name"`` when several packages provide it, a descriptor, or `None` for
                ``QEFF_BACKEND`` or else the best of what works here (see `choose`).
            extensions: names of extensions that wrap the hooks; `None` reads ``QEFF_EXTENSIONS``.
            tried: import descriptor and implementation in a process of their own first, see `descriptor`.
            stage: what the relay is for. A backend that splits its implementation is imported only as far as that needs.

        Raises:
            BackendError: one of its subclasses says whether the backend is absent, blocked, incompatible or broken.
            ExtensionError: a requested extension is absent or broken.
        """
        if name is None:
            name = self.choose()
        if isinstance(name, str):
            descriptor, origin = self.descriptor(name, tried=tried), self._origin_of(name)
            registered = normalize(name) in self._registered
            package = "" if registered else package_name(self._select(name))
            changes = registered or is_editable(self._select(name))
        else:
            descriptor, origin = _as_descriptor(name, "passed as an object"), "passed as an object"
            _check_api(descriptor, origin)
            package, changes = "", True
        loaded = self.extensions(extensions)
        split = descriptor.execute_implementation
        compiles = not split or stage != "execute"
        return Relay(
            descriptor,
            implementation=_load(descriptor, descriptor.implementation, origin, tried=tried) if compiles else None,
            execute_implementation=_load(descriptor, split, origin, tried=tried)
            if split and stage != "compile"
            else None,
            extensions=loaded,
            origin=origin,
            package=package,
            extension_origins=self.extension_origins(loaded),
            source_modules=_modules_of(descriptor) if changes else (),
        )

    def core(self, *, extensions: Sequence[str] | None = None) -> Relay:
        """A relay without a backend: the core's own hooks and the extensions. Enough to export."""
        loaded = self.extensions(extensions)
        origins = self.extension_origins(loaded)
        return Relay(None, implementation=None, extensions=loaded, origin="core", extension_origins=origins)

    def choose(self) -> str:
        """The backend that is used when none is named.

        ``QEFF_BACKEND``, else the one that ranks first among those whose probe says that they can compile and execute
        here: hardware before simulators. Told in one log line. The choice is made before any work starts; a failure
        of the chosen backend never leads to another one.

        Raises:
            BackendNotInstalledError: no backend is installed.
            BackendUnavailableError: none of the installed ones can compile and execute here.
        """
        from_environment = os.environ.get(DEFAULT_VARIABLE, "").strip()
        if from_environment:
            logger.info("backend '%s' chosen: %s is set", from_environment, DEFAULT_VARIABLE)
            return from_environment
        self._tell_misspelt_denials()
        usable: list[tuple[str, Probe]] = []
        rejected: list[str] = []
        for name, verdict in self._probe_all():
            if isinstance(verdict, str):
                rejected.append(f"{name} ({verdict})")
            elif verdict.can_compile and verdict.can_execute:
                usable.append((name, verdict))
            else:
                rejected.append(f"{name} ({verdict.reason})")
        if not usable and not rejected:
            raise BackendNotInstalledError(
                "no backend is installed; install one, for instance `pip install qeff-ort-sim-backend`, "
                "which simulates on the CPU"
            )
        if not usable:
            raise BackendUnavailableError(
                f"none of the installed backends can compile and execute here: {'; '.join(rejected)}; "
                "`qeff doctor` shows the remedies, or name a backend explicitly"
            )
        usable.sort(key=lambda item: (not item[1].hardware, -item[1].rank, item[0]))
        chosen, probe = usable[0]
        others = [f"{name} ({_sort_of(other)}, rank {other.rank})" for name, other in usable[1:]] + rejected
        logger.info(
            "backend '%s' chosen: %s, rank %d%s",
            chosen,
            _sort_of(probe),
            probe.rank,
            f"; not {', '.join(others)}" if others else "; no other backend is installed",
        )
        return chosen

    def options_elsewhere(self, excluding: str) -> dict[str, list[str]]:
        """Option name -> other backends that have it. For error messages: backends that cannot be loaded are left
        out.
        """
        from qeff_framework.options import describe_options

        found: dict[str, list[str]] = {}
        for name in self._usable_names():
            if normalize(name) == normalize(excluding):
                continue
            with contextlib.suppress(Exception):
                for info in describe_options(self.descriptor(name, tried=True).options):
                    found.setdefault(info.name, []).append(name)
        return found

    # --- extensions ---------------------------------------------------------------------------------------------------

    def extensions(self, names: Sequence[str] | None = None) -> dict[str, object]:
        """Loads extensions by name; `None` reads ``QEFF_EXTENSIONS``. Several names in one text stand between commas."""
        if names is None:
            names = os.environ.get(EXTENSIONS_VARIABLE, "")
        if isinstance(names, str):
            names = [part for part in names.split(",") if part.strip()]
        if not names:
            return {}
        available = self._extension_entries()
        loaded: dict[str, object] = {}
        for name in sorted({normalize(name) for name in names}):
            if name not in available:
                near = difflib.get_close_matches(name, available, n=1, cutoff=CLOSE)
                hint = f", did you mean '{near[0]}'?" if near else f"; installed: {', '.join(sorted(available))}"
                raise UnknownExtensionError(f"no extension named '{printable(name)}' is installed{hint}")
            entry, *twins = available[name]
            if twins:
                providers = ", ".join(sorted(origin_of(twin) for twin in (entry, *twins)))
                raise ExtensionError(
                    f"{len(twins) + 1} packages provide extension '{name}': {providers}; uninstall all but one of them"
                )
            try:
                target = entry.load()
                loaded[name] = target() if isinstance(target, type) else target
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise ExtensionError(
                    f"extension '{name}' ({origin_of(entry)}) could not be loaded: {error_line(error)}"
                ) from error
        return loaded

    def extension_origins(self, names: Iterable[str]) -> dict[str, str]:
        """Package and version of installed extensions, by name."""
        available = self._extension_entries() if names else {}
        return {name: origin_of(available[name][0]) for name in names if name in available}

    def _extension_entries(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(EXTENSION_GROUP):
            found.setdefault(normalize(entry.name), []).append(entry)
        return found

    # --- inside -------------------------------------------------------------------------------------------------------

    def _entries(self) -> list[EntryPoint]:
        entries = [entry for entry in entry_points() if entry.group.startswith(f"{_GROUP_STEM}.v")]
        return sorted(entries, key=lambda entry: (normalize(entry.name), package_name(entry)))

    def _describe(self, entry: EntryPoint, entries: Sequence[EntryPoint]) -> InstalledBackend:
        status, reason = self._status(entry, entries)
        return InstalledBackend(
            name=printable(entry.name),
            distribution=package_name(entry),
            version=package_version(entry),
            summary=package_summary(entry),
            target=printable(entry.value),
            api_major=entry.group.rpartition(".v")[2],
            status=status,
            reason=reason,
        )

    def _status(self, entry: EntryPoint, entries: Sequence[EntryPoint]) -> tuple[BackendStatus, str]:
        major = entry.group.rpartition(".v")[2]
        if major != _API_MAJOR:
            return "incompatible", f"built for plugin API v{major}, this qeff_framework speaks v{_API_MAJOR}"
        if not is_backend_name(entry.name):
            return "incompatible", "its entry point must be named with letters, digits, - and _"
        variable = _blocked_by(entry)
        if variable:
            return "blocked", f"blocked by {variable}={os.environ[variable]!r}"
        twins = [
            twin for twin in entries if twin.group == entry.group and normalize(twin.name) == normalize(entry.name)
        ]
        if len(twins) > 1:
            return "conflict", f"also provided by {', '.join(origin_of(twin) for twin in twins if twin is not entry)}"
        return "available", ""

    def _select(self, name: str) -> EntryPoint:
        """The one entry point for `name`, past the gates: exists, allowed, right API, not ambiguous."""
        distribution, _, bare = name.rpartition(":")
        entries = self._entries()
        named = [
            entry
            for entry in entries
            if normalize(entry.name) == normalize(bare)
            and (not distribution or normalize(package_name(entry)) == normalize(distribution))
        ]
        if not named:
            raise UnknownBackendError(_not_installed(name, bare, [*entries], [*self._registered]))
        speaking = [entry for entry in named if entry.group == BACKEND_GROUP]
        if not speaking:
            majors = ", ".join(sorted(f"v{entry.group.rpartition('.v')[2]}" for entry in named))
            raise BackendIncompatibleError(
                f"backend '{name}' ({origin_of(named[0])}) was built for plugin API {majors}, this qeff_framework speaks "
                f"v{_API_MAJOR}; install matching versions of qeff-framework and {package_name(named[0])}"
            )
        allowed = [entry for entry in speaking if not _blocked_by(entry)]
        if not allowed:
            variable = _blocked_by(speaking[0])
            raise BackendBlockedError(
                f"backend '{name}' ({origin_of(speaking[0])}) is installed but blocked by "
                f"{variable}={os.environ[variable]!r}; change or unset that variable to use it"
            )
        if len(allowed) > 1:
            providers = ", ".join(origin_of(entry) for entry in allowed)
            raise BackendConflictError(
                f"{len(allowed)} packages provide backend '{bare}': {providers}; uninstall one, or name it exactly as "
                f"'{package_name(allowed[0])}:{bare}'"
            )
        return allowed[0]

    def _origin_of(self, name: str) -> str:
        return "registered by hand" if normalize(name) in self._registered else origin_of(self._select(name))

    def _tell_misspelt_denials(self) -> None:
        """Warns about a name that denies nobody and is nearly that of a backend, which may be chosen then."""
        known = [normalize(name) for entry in self._entries() for name in (entry.name, package_name(entry))]
        for part in os.environ.get(DENY_VARIABLE, "").split(","):
            near = difflib.get_close_matches(normalize(part), known, n=1, cutoff=CLOSE)
            if near and normalize(part) not in known:
                logger.warning(
                    "%s names '%s', which is no installed backend; did you mean '%s'?",
                    DENY_VARIABLE,
                    part.strip(),
                    near[0],
                )

    def _usable_names(self) -> list[str]:
        available = [backend.name for backend in self.installed() if backend.status == "available"]
        return sorted({*available, *self._registered})

    def _probe_all(self) -> Iterator[tuple[str, Probe | str]]:
        """Probes every backend that is not blocked; a string is the reason why one could not be probed."""
        for backend in self.installed():
            if backend.status != "available" and normalize(backend.name) not in self._registered:
                yield backend.name, backend.reason
        names = self._usable_names()
        with contextlib.suppress(BackendError, ValueError):  # Told below, for the one that it is about.
            try_imports([self._select(name).module for name in names if normalize(name) not in self._registered])
        with ThreadPoolExecutor() as pool:
            yield from zip(names, pool.map(self._verdict, names), strict=True)

    def _verdict(self, name: str) -> Probe | str:
        try:
            return self.probe(name)
        except BackendError as error:  # One that breaks here cannot be chosen; its reason is told.
            return str(error)


def _sort_of(probe: Probe) -> str:
    return "hardware" if probe.hardware else "simulator"


def _blocked_by(entry: EntryPoint) -> str:
    """The variable that blocks this entry point, or an empty string."""
    names = {normalize(entry.name), normalize(package_name(entry))} - {normalize(UNKNOWN_PACKAGE)}
    allowed = os.environ.get(ALLOW_VARIABLE)
    if allowed is not None and not names & {normalize(part) for part in allowed.split(",")}:
        return ALLOW_VARIABLE
    denied = os.environ.get(DENY_VARIABLE, "")
    return DENY_VARIABLE if names & {normalize(part) for part in denied.split(",") if part.strip()} else ""


def _not_installed(asked: str, bare: str, entries: Sequence[EntryPoint], registered: Sequence[str]) -> str:
    names = sorted({entry.name for entry in entries} | set(registered))
    near = difflib.get_close_matches(normalize(bare), names, n=1)
    installed = f"(installed: {', '.join(map(printable, names)) or 'none'})"
    if near:
        return f"no backend named '{asked}' is installed, did you mean '{printable(near[0])}'? {installed}"
    told = f"no backend named '{asked}' is installed {installed}; backends are packages"
    # A text that cannot name a backend names no package either.
    return (
        f"{told}, usually named like `pip install qeff-{normalize(bare).replace('_', '-')}-backend`"
        if is_backend_name(bare)
        else told
    )


def _as_descriptor(loaded: Any, origin: str) -> Backend:
    try:
        candidate = loaded() if isinstance(loaded, type) and issubclass(loaded, Backend) else loaded
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BackendBrokenError(f"the backend descriptor ({origin}) cannot be created: {error_line(error)}") from error
    if not isinstance(candidate, Backend):
        raise BackendIncompatibleError(
            f"the backend entry point of {origin} resolves to {type(loaded).__name__}, expected a subclass or an instance of "
            "qeff_framework.plugin_api.Backend"
        )
    missing = [name for name in ("name", "capabilities", "implementation") if not hasattr(candidate, name)]
    if missing:
        raise BackendIncompatibleError(
            f"the backend descriptor ({origin}) does not define {', '.join(missing)}; see qeff_framework.plugin_api.Backend"
        )
    check_descriptor(candidate, origin)
    return candidate


def _check_api(descriptor: Backend, origin: str) -> None:
    try:
        major, minor = (int(part) for part in descriptor.api.split("."))
    except ValueError:
        raise BackendIncompatibleError(
            f"backend '{descriptor.name}' ({origin}) declares plugin API {descriptor.api!r}, expected 'major.minor'"
        ) from None
    own_major, own_minor = (int(part) for part in API_VERSION.split("."))
    if major != own_major or minor > own_minor:
        raise BackendIncompatibleError(
            f"backend '{descriptor.name}' ({origin}) was built for plugin API {descriptor.api}, this qeff_framework speaks "
            f"{API_VERSION}; upgrade the older of the two packages"
        )


def _modules_of(descriptor: Backend) -> tuple[str, ...]:
    targets = (descriptor.implementation, descriptor.execute_implementation)
    return (type(descriptor).__module__, *(target.partition(":")[0] for target in targets if target))


def _load(descriptor: Backend, target: str, origin: str, *, tried: bool) -> object:
    """The hooks at `target`, ``"package.module:Class"``."""
    module_name, _, attribute = target.partition(":")
    if tried and (problem := import_problem(module_name)):
        raise BackendBrokenError(
            f"backend '{descriptor.name}' ({origin}) is installed but its implementation {target} could not be loaded: {problem}"
        )
    try:
        implementation = getattr(importlib.import_module(module_name), attribute)
        return implementation() if isinstance(implementation, type) else implementation
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BackendBrokenError(
            f"backend '{descriptor.name}' ({origin}) is installed but its implementation {target} could "
            f"not be loaded: {error_line(error)}; `qeff doctor {descriptor.name}` shows what is missing"
        ) from error


#: The process-wide registry that `list_backends` and `get_backend` use.
registry = Registry()


def list_backends() -> tuple[InstalledBackend, ...]:
    """Every installed backend, from package metadata alone: nothing is imported."""
    return registry.installed()


def get_backend(name: str | Backend | type[Backend] | None = None, *, extensions: Sequence[str] | None = None) -> Relay:
    """Selects a backend by name; see `Registry.get`."""
    return registry.get(name, extensions=extensions)


__all__ = ["BackendError", "InstalledBackend", "Registry", "get_backend", "list_backends", "normalize", "registry"]
