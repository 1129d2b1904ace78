"""Which code belongs to an installed library, and which is one's own."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any


@functools.cache
def library_of(module_name: str | None) -> str | None:
    """Name and version of the installed library that a Python module belongs to; `None` for code of one's own.

    Code is one's own wherever it can change without its version: scripts, notebooks, packages that are installed as links to
    their sources, and files without a version.
    """
    if not module_name or module_name == "__main__":
        return None
    package = module_name.partition(".")[0]
    module = sys.modules.get(module_name) or sys.modules.get(package)
    file = getattr(module, "__file__", None) or getattr(sys.modules.get(package), "__file__", None)
    if module is None:
        with contextlib.suppress(ImportError, ValueError):
            file = getattr(importlib.util.find_spec(package), "origin", None)
    if package in sys.stdlib_module_names and (file is None or _is_standard(file)):
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    if file is None or not {"site-packages", "dist-packages"} & {*Path(file).parts}:
        return None
    version = _version_of(package)
    return f"{package} {version}" if version else None


def _is_standard(file: str) -> bool:
    return Path(file).parts[: len(_STANDARD)] == _STANDARD and "site-packages" not in file


_STANDARD = Path(typing.__file__).parent.parts


@functools.cache
def _version_of(package: str) -> str | None:
    """The version of the distribution that installed `package`, several ones joined; `None` where none says that it did."""
    import importlib_metadata

    try:
        return importlib_metadata.version(package)
    except importlib_metadata.PackageNotFoundError:
        names = {found.metadata["Name"] for found in importlib_metadata.distributions() if installs(found, package)}
        return ", ".join(importlib_metadata.version(name) for name in sorted(names)) or None


def installs(distribution: Any, package: str) -> bool:
    """Whether a distribution of `importlib_metadata` says that it installed a top-level module or package of this name.

    `importlib_metadata.packages_distributions` has the same answer for all packages, and takes 0.5 s where 250 are installed: it
    builds an object for each installed file.
    """
    if declared := (distribution.read_text("top_level.txt") or "").split():
        return package in declared
    record = distribution.read_text("RECORD")
    files = record.splitlines() if record is not None else map(str, distribution.files or ())
    for line in files:
        if line.startswith(package):
            top, separator, _ = line.partition("/")
            if top == package if separator else inspect.getmodulename(line.partition(",")[0]) == package:
                return True
    return False


def is_own_code(value: object) -> bool:
    """Whether `value` is a function or class that no installed library has defined."""
    if isinstance(value, types.FunctionType):
        return library_of(value.__globals__.get("__name__")) is None
    if isinstance(value, type):
        return library_of(value.__module__) is None
    if isinstance(value, types.MethodType):
        return is_own_code(value.__func__)
    return False
