"""What the metadata of installed packages says, read so that no package of a stranger can break a command.

Every field of a package's metadata but the name may be absent, and files may be damaged or hold control characters.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

logger = logging.getLogger(__name__)

UNKNOWN_PACKAGE = "an unknown package"
#: Longer texts of strangers are cut in listings and messages.
_LONGEST = 300


def printable(text: object, *, longest: int = _LONGEST) -> str:
    """Returns `text` on one line, without characters that a terminal would obey, and cut to `longest` characters."""
    words = " ".join(str(text).split())
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in words)
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def entry_points(group: str | None = None) -> Sequence[EntryPoint]:
    """Returns the entry points of `group`, or all. A package whose list cannot be read is left out, with a warning."""
    # Imported here: the first import costs 30 to 90 ms, which `import qeff_framework` should not pay.
    import importlib_metadata

    try:
        found = list(importlib_metadata.entry_points())
    except Exception:  # noqa: BLE001 - one damaged package: read them one by one
        found = []
        for distribution in importlib_metadata.distributions():
            try:
                found.extend(distribution.entry_points)
            except Exception as error:  # noqa: BLE001 - whatever a damaged file leads to
                place = printable(getattr(distribution, "_path", UNKNOWN_PACKAGE))
                logger.warning("the entry points of %s cannot be read and are left out: %s", place, printable(error))
    return [entry for entry in found if group is None or entry.group == group]


def package_name(entry: EntryPoint) -> str:
    """Returns the name of the package that an entry point belongs to."""
    return _field(entry, "Name") or UNKNOWN_PACKAGE


def package_version(entry: EntryPoint) -> str:
    """Returns its version, or an empty string."""
    return _field(entry, "Version")


def package_summary(entry: EntryPoint) -> str:
    """Returns its summary, or an empty string."""
    return _field(entry, "Summary")


def origin_of(entry: EntryPoint) -> str:
    """Returns name and version of the package, for messages."""
    return f"{package_name(entry)} {package_version(entry)}".strip()


def _field(entry: EntryPoint, name: str) -> str:
    try:
        metadata: Any = entry.dist.metadata if entry.dist else None
        value = None if metadata is None else metadata.get(name)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file leads to
        logger.debug("the metadata behind entry point %s cannot be read: %s", printable(entry.name), error)
        return ""
    return printable(value) if value else ""
