"""What ``qeff doctor`` looks at beside the backends: versions that do not fit, packages that are there twice, devices."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import Check, Status
from qeff_framework.errors import QEFFError
from qeff_framework.options import CLOSE
from qeff_framework.plugin_metadata import (
    belongs_to_source,
    editable_source,
    entry_points,
    origin_of,
    package_name,
    printable,
)
from qeff_framework.registry import (
    ALLOW_VARIABLE,
    DEFAULT_VARIABLE,
    DENY_VARIABLE,
    EXTENSIONS_VARIABLE,
    normalize,
)

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

#: Where Linux lists compute accelerators.
ACCELERATORS = Path("/sys/class/accel")
_VARIABLES = ("QEFF_HOME", DEFAULT_VARIABLE, ALLOW_VARIABLE, DENY_VARIABLE, EXTENSIONS_VARIABLE)
_FRAMEWORK = "qeff-framework"


def environment_checks(*, hardware_is_used: bool) -> list[Check]:
    """Everything that is not as it should be, each with a remedy, and the accelerators that the system lists.

    Args:
        hardware_is_used: an installed backend says that it runs on real hardware here.
    """
    return [
        *_requirements(),
        *_duplicates(),
        *_extensions(),
        *_store(),
        *_variables(),
        *_devices(hardware_is_used=hardware_is_used),
    ]


def _requirements() -> Iterator[Check]:
    """Packages whose versions are not what the framework or a plugin says that it needs."""
    import importlib_metadata
    from packaging.requirements import InvalidRequirement, Requirement

    for name in _packages():
        try:
            requirements = importlib_metadata.requires(name) or []
        except Exception:  # noqa: BLE001, S112 - a package without readable metadata says nothing
            continue
        for text in requirements:
            try:
                needed = Requirement(text)
            except InvalidRequirement:
                continue
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            try:
                found = importlib_metadata.version(needed.name)
            except importlib_metadata.PackageNotFoundError:
                found = "not installed"
            wanted = f"{needed.name}{needed.specifier}"
            if found == "not installed" or not needed.specifier.contains(found, prereleases=True):
                yield Check(
                    name=f"{name} needs {wanted}",
                    status=Status.FAILED,
                    detail=f"{needed.name} is {found}",
                    remedy=f"pip install '{wanted}'",
                )


def _packages() -> list[str]:
    """The framework, and the packages that provide something for it."""
    return sorted({_FRAMEWORK, *(package_name(entry) for entry in entry_points() if entry.dist is not None)})


def _duplicates() -> Iterator[Check]:
    """Packages of the framework that are installed in several places: the first one on the import path is used."""
    import importlib_metadata

    wanted = {normalize(name) for name in _packages()}
    places: dict[str, list[Any]] = {}
    for distribution in importlib_metadata.distributions():
        try:
            name = normalize(distribution.metadata["Name"])
        except Exception:  # noqa: BLE001, S112 - a damaged package is no duplicate
            continue
        if name in wanted:
            places.setdefault(name, []).append(distribution)
    for same in places.values():
        sources = [source for one in same if (source := editable_source(one)) is not None]
        found = [one for one in same if not any(belongs_to_source(one, source) for source in sources)]
        name = found[0].metadata["Name"]
        if len(found) > 1:
            told = ", ".join(f"{one.version} in {printable(one.locate_file(''))}" for one in found)
            yield Check(
                name=f"{name} is installed {len(found)} times",
                status=Status.WARNING,
                detail=f"{told}; the first one is used",
                remedy=f"pip uninstall {name}, until it is gone, and install it once",
            )


def _extensions() -> Iterator[Check]:
    by_name: dict[str, list[EntryPoint]] = {}
    from qeff_framework.plugin_api import EXTENSION_GROUP

    for entry in entry_points(EXTENSION_GROUP):
        by_name.setdefault(normalize(entry.name), []).append(entry)
    for name, entries in sorted(by_name.items()):
        told = ", ".join(sorted(origin_of(entry) for entry in entries))
        remedy = f"uninstall all but one of these packages to use --extension {name}" if len(entries) > 1 else ""
        status = Status.WARNING if remedy else Status.OK
        yield Check(name=f"extension {printable(name)}", status=status, detail=told, remedy=remedy)


def _store() -> Iterator[Check]:
    from qeff_framework.artifacts.root import store_root

    try:
        root = store_root()
    except QEFFError as error:
        yield Check(name="artifact store", status=Status.FAILED, detail=str(error), remedy="set QEFF_HOME to a folder")
        return
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        detail, remedy = f"{root} is not writable", "set QEFF_HOME to a writable folder"
        yield Check(name="artifact store", status=Status.FAILED, detail=detail, remedy=remedy)


def _variables() -> Iterator[Check]:
    """Variables that are spelt almost like one of the framework's. Backends have others of their own."""
    for name, meant in misspelt_variables():
        remedy = f"did you mean {meant}?"
        yield Check(name=f"variable {name}", status=Status.WARNING, detail="is read by nobody here", remedy=remedy)


def misspelt_variables() -> Iterator[tuple[str, str]]:
    """Variables that are set and almost spelt like one of the framework's, each with that one."""
    for name in sorted(name for name in os.environ if name.startswith("QEF") and name not in _VARIABLES):
        near = difflib.get_close_matches(name, _VARIABLES, n=1, cutoff=max(CLOSE, 0.85))
        if near:
            yield name, near[0]


def _devices(*, hardware_is_used: bool) -> Iterator[Check]:
    """The accelerators that the system lists, and what is missing where no backend uses one."""
    for device in _listed_below(ACCELERATORS):
        driver = (device / "device" / "driver").resolve().name if (device / "device" / "driver").exists() else ""
        identity = ":".join(filter(None, (_text(device / "device" / part) for part in ("vendor", "device"))))
        told = f"driver {driver or 'unknown'}{f', {identity}' if identity else ''}"
        name = f"device {printable(device.name)}"
        if hardware_is_used:
            yield Check(name=name, status=Status.OK, detail=told)
            continue
        package = f"qeff-{normalize(driver).replace('_', '-')}-backend" if driver else "the package of its vendor"
        yield Check(
            name=name,
            status=Status.WARNING,
            detail=f"{told}; no installed backend runs on hardware here",
            remedy=f"install its backend, usually named like `pip install {package}`, and see the checks of the installed ones",
        )


def _listed_below(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return ()


def _text(file: Path) -> str:
    try:
        return printable(file.read_text(encoding="utf-8").strip().removeprefix("0x"), longest=20)
    except (OSError, ValueError):
        return ""
