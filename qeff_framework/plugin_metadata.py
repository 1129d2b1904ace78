"""What the metadata of installed packages says, read so that no package of a stranger can break a command.

Every field of a package's metadata but the name may be absent, and files may be damaged or hold control characters.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

logger = logging.getLogger(__name__)

UNKNOWN_PACKAGE = "an unknown package"
#: What the names of this framework's entry-point groups begin with.
_GROUPS = "qeff_framework."
#: Longer texts of strangers are cut in listings and messages.
_LONGEST = 300


def printable(text: object, *, longest: int = _LONGEST) -> str:
    """Returns `text` on one line, without characters that a terminal would obey, and cut to `longest` characters."""
    words = " ".join(str(text).split())
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in words)
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def printable_lines(text: str) -> str:
    """Returns `text` with its line ends and tabs, without other characters that a terminal would obey."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def is_backend_name(name: str) -> bool:
    """Whether a backend may be called `name`: it is typed on command lines and stands in file names."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) is not None


def entry_points(group: str | None = None) -> Sequence[EntryPoint]:
    """Returns the entry points of `group`, or all of this framework's groups.

    Of a package that is installed twice the first one on the import path counts, unless only an empty folder is left of it.
    A package whose list cannot be read is left out, with a warning where it provides something for this framework.
    """
    # Loading a program asks five times, and a hundred packages take 10 ms to look through.
    place = _place()
    if place is None or place not in _known:
        found, is_complete = _scanned()
        if place is None or not is_complete:
            return [entry for entry in found if group is None or entry.group == group]
        _known.clear()
        _known[place] = found
    return [entry for entry in _known[place] if group is None or entry.group == group]


#: Modules of the finders that look through the import path alone.
_PATH_FINDERS = ("_frozen_importlib_external", "importlib_metadata")
#: The entry points of the last import path that was looked through, where nothing had to be left out.
_known: dict[Hashable, Sequence[EntryPoint]] = {}


def _place() -> Hashable | None:
    """The import path and when its folders have last changed; `None` if packages may come from elsewhere."""
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    if any(getattr(finder, "__module__", None) not in _PATH_FINDERS for finder in finders):
        return None
    return tuple((folder, _changed(folder)) for folder in sys.path)


def _changed(folder: str) -> int:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0


def _scanned() -> tuple[Sequence[EntryPoint], bool]:
    """The entry points, and whether every package could be read."""
    found: list[EntryPoint] = []
    owners: dict[str, Any] = {}
    left_out: list[str] = []
    for distribution in _distributions(left_out):
        try:
            entries = [entry for entry in distribution.entry_points if entry.group.startswith(_GROUPS)]
        except Exception as error:  # noqa: BLE001 - whatever a damaged file leads to
            _warn(distribution, error)
            left_out.append(_folder_name(distribution))
            continue
        owner = owners.setdefault(_folder_name(distribution), distribution)
        if entries and owner is not distribution:
            if _has_metadata(owner):
                continue
            owners[_folder_name(distribution)] = distribution
        found += entries
    return found, not left_out


def _distributions(left_out: list[str]) -> Iterator[Any]:
    # Imported here: the first import costs 30 to 90 ms, which `import qeff_framework` should not pay.
    import importlib_metadata

    found = iter(importlib_metadata.distributions())
    while True:
        try:
            distribution = next(found)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - a finder of a stranger on sys.meta_path
            logger.warning("the installed packages cannot all be listed: %s", printable(error))
            left_out.append(UNKNOWN_PACKAGE)
            return
        yield distribution


def _folder_name(distribution: Any) -> str:
    """The package's name as its folder spells it, which costs no reading of metadata."""
    try:
        return str(distribution._normalized_name)  # noqa: SLF001 - what importlib_metadata itself tells packages apart by
    except Exception:  # noqa: BLE001 - whatever a damaged file leads to
        return str(id(distribution))


def _has_metadata(distribution: Any) -> bool:
    try:
        return bool(distribution.read_text("METADATA") or distribution.read_text("PKG-INFO"))
    except Exception:  # noqa: BLE001 - unreadable metadata are still metadata
        return True


def _warn(distribution: Any, error: Exception) -> None:
    try:
        content = error.object if isinstance(error, UnicodeDecodeError) else distribution.read_text("entry_points.txt")
        is_ours = (_GROUPS.encode() if isinstance(content, bytes) else _GROUPS) in content
    except Exception:  # noqa: BLE001 - whatever a damaged file leads to
        is_ours = False
    place = printable(getattr(distribution, "_path", UNKNOWN_PACKAGE))
    level = logging.WARNING if is_ours else logging.DEBUG
    logger.log(level, "the entry points of %s cannot be read and are left out: %s", place, printable(error))


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


def is_editable(entry: EntryPoint) -> bool:
    """Whether the package's files may change while its version stays: an editable install, or metadata beside the source."""
    return entry.dist is not None and (_egg_info(entry.dist) is not None or _editable_url(entry.dist) is not None)


def editable_source(distribution: Any) -> Path | None:
    """The folder that an editable install was made from; ``None`` where that is not known, and for any other install."""
    from urllib.request import url2pathname

    try:
        path = urlsplit(_editable_url(distribution) or "").path
        return Path(url2pathname(path)) if path else None
    except (OSError, TypeError, ValueError):
        return None


def _editable_url(distribution: Any) -> str | None:
    """Where an editable install comes from, perhaps an empty text; ``None`` for any other install."""
    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
        return str(told.get("url", "")) if told["dir_info"]["editable"] is True else None
    except Exception:  # noqa: BLE001 - whatever a damaged file leads to
        return None


def belongs_to_source(distribution: Any, source: Path) -> bool:
    """Whether `distribution` is what the build of an editable install has left beside the sources below `source`."""
    info = _egg_info(distribution)
    return info is not None and info.resolve().is_relative_to(source.resolve())


def _egg_info(distribution: Any) -> Path | None:
    """The folder ``NAME.egg-info``, which setuptools writes beside sources and which no wheel has."""
    path = getattr(distribution, "_path", None)
    return Path(str(path)) if str(path).endswith(".egg-info") else None


def _field(entry: EntryPoint, name: str) -> str:
    try:
        metadata: Any = entry.dist.metadata if entry.dist else None
        value = None if metadata is None else metadata.get(name)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file leads to
        logger.debug("the metadata behind entry point %s cannot be read: %s", printable(entry.name), error)
        return ""
    return printable(value) if value else ""
