"""The package that provides the backend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qeff_framework.plugin_api import BACKEND_GROUP
from qeff_framework.plugin_metadata import entry_points
from qeff_framework.registry import normalize
from qeff_framework.testing.checks import UnavailableError, check, require
from qeff_framework.testing.distributions import InstalledDistribution, canonical, distribution_of

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject


def _package(subject: Subject) -> InstalledDistribution:
    found = distribution_of(subject.backend)
    if found is None:
        raise UnavailableError("the backend is not installed from a package")
    return found


def _field(subject: Subject, name: str) -> list[str]:
    metadata: Any = _package(subject).entry.dist.metadata  # type: ignore[union-attr]
    return [str(value) for value in metadata.get_all(name) or ()]


@check("metadata")
def check_entry_point(subject: Subject) -> None:
    """The entry point has the name of the backend, and leads to its descriptor."""
    package = _package(subject)
    name = package.entry.name
    require(
        name == subject.backend.name, f"the entry point is named '{name}', the descriptor says '{subject.backend.name}'"
    )
    loaded = package.entry.load()
    same = loaded is type(subject.backend) or type(loaded) is type(subject.backend)
    require(same, f"the entry point leads to {loaded!r}, not to the descriptor of '{subject.backend.name}'")


@check("metadata")
def check_one_provider(subject: Subject) -> None:
    """No other installed package provides a backend of this name."""
    _package(subject)
    wanted = normalize(subject.backend.name)
    providers = {
        canonical(entry.dist.name)
        for entry in entry_points(BACKEND_GROUP)
        if normalize(entry.name) == wanted and entry.dist is not None
    }
    require(len(providers) == 1, f"{', '.join(sorted(providers))} all provide the backend; uninstall all but one")


@check("metadata")
def check_description(subject: Subject) -> None:
    """The package says in one line what it is, and which Pythons it runs on."""
    summary = " ".join(_field(subject, "Summary")).strip()
    require(summary and summary != "UNKNOWN", "the package has no Summary: set `description` in pyproject.toml")
    require(_field(subject, "Requires-Python"), "the package has no Requires-Python: set `requires-python`")


@check("metadata")
def check_requires_the_framework(subject: Subject) -> None:
    """The package requires qeff-framework, up to a version that it does not know."""
    found = [text.partition(";")[0] for text in _field(subject, "Requires-Dist")]
    mine = [text for text in found if canonical(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) == "qeff-framework"]
    require(mine, "the package does not require qeff-framework: add it to `dependencies`")
    bounded = any(sign in mine[0] for sign in ("<", "==", "~="))
    require(
        bounded,
        f"the package requires '{mine[0].strip()}': add an upper bound, such as <0.2, since 0.x versions may break",
    )


@check("metadata")
def check_version(subject: Subject) -> None:
    """The package has a version of the form that installers compare."""
    version = _package(subject).version
    pattern = r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?"
    require(re.fullmatch(pattern, version), f"the version is {version!r}, not one such as 1.0.3")
