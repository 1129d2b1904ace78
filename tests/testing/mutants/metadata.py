"""Packages that break one promise each; the backend in them is without a fault."""

from __future__ import annotations

from tests.testing.mutants import METADATA, mutant
from tests.testing.toy_backend import ToyBackend


def without(line: str) -> str:
    """Metadata without the field that begins like this."""
    return "".join(each for each in METADATA.splitlines(keepends=True) if not each.startswith(line))


@mutant("metadata", "description", metadata=without("Summary"))
class PackageWithoutASummary(ToyBackend):
    """Nothing is said about the package."""


@mutant("metadata", "description", metadata=without("Requires-Python"))
class PackageForAnyPython(ToyBackend):
    """An old Python installs it and fails."""


@mutant("metadata", "requires_the_framework", metadata=without("Requires-Dist: qeff"))
class PackageWithoutTheFramework(ToyBackend):
    """It is installed without what it is for."""


@mutant("metadata", "requires_the_framework", metadata=METADATA.replace("<0.2,", ""))
class PackageForAnyFramework(ToyBackend):
    """It is installed beside versions that it does not know."""


@mutant("metadata", "version", metadata=METADATA.replace("1.2.3", "latest"))
class PackageWithoutAVersion(ToyBackend):
    """No installer can compare it."""


@mutant("metadata", "entry_point", metadata=METADATA, name="Misnamed-Entry")
class MisnamedEntry(ToyBackend):
    """Its entry point and its descriptor write the name in two ways."""
