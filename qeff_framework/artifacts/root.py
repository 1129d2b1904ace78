"""Where the artifact store lies."""

from __future__ import annotations

import os
from pathlib import Path

from qeff_framework.errors import ArtifactError


def store_root() -> Path:
    """``QEFF_HOME``, else ``$XDG_CACHE_HOME/qeff``, else ``~/.cache/qeff``; absolute, read at each call.

    An empty variable counts as unset, and so does a relative ``XDG_CACHE_HOME``, as the XDG base directory rules say.
    Raises `ArtifactError` when no variable is set and the user has no home directory.
    """
    try:
        if home := os.environ.get("QEFF_HOME"):
            root = Path(home).expanduser().absolute()
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
            root = (cache if cache.is_absolute() else Path.home() / ".cache") / "qeff"
    except RuntimeError as error:
        raise ArtifactError(
            f"the artifact store has no place: {error}. Set QEFF_HOME to a writable directory"
        ) from error
    if not _is_utf8(root):
        # Neither JSON nor libraries that are not Python's take such a path.
        raise ArtifactError(
            f"the artifact store {os.fsencode(root)!r} has a name that is no UTF-8. Set QEFF_HOME to another directory"
        )
    return root


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
