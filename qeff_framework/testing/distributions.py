"""The packages around a backend, from their metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qeff_framework.plugin_metadata import entry_points
from qeff_framework.registry import normalize

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

    from qeff_framework.plugin_api import Backend


@dataclass(frozen=True, kw_only=True)
class InstalledDistribution:
    """A package with the entry point of a backend."""

    name: str
    version: str
    entry: EntryPoint


def distribution_of(backend: Backend) -> InstalledDistribution | None:
    """The package whose entry point leads to `backend`; `None` when it is not installed."""
    from qeff_framework.plugin_api import BACKEND_GROUP

    for entry in entry_points(BACKEND_GROUP):
        if normalize(entry.name) != normalize(backend.name) or entry.dist is None:
            continue
        if entry.value.partition(":")[0].partition(".")[0] == type(backend).__module__.partition(".")[0]:
            return InstalledDistribution(name=canonical(entry.dist.name), version=entry.dist.version, entry=entry)
    return None


def requirements(distribution: str) -> dict[str, str]:
    """Installed versions of what `distribution` requires here without extras, by canonical name."""
    import importlib_metadata

    found = {}
    for text in importlib_metadata.requires(distribution) or ():
        requirement, _, marker = text.partition(";")
        name = canonical(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])
        if "extra" in marker:
            continue
        try:
            found[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            continue  # for another platform, or checked by the installer
    return found


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
