"""The key that clients must send: read from where other users of the machine cannot read it."""

from __future__ import annotations

import os
from pathlib import Path

from qeff_framework.errors import OptionError


def key_of_environment(name: str, option: str) -> str:
    """The key in an environment variable. Raises `OptionError`, naming `option`, where there is none."""
    return _checked(os.environ.get(name, ""), f"{option} {name}")


def key_of_file(path: Path, option: str) -> str:
    """The key in the first line of a file."""
    try:
        return _checked(path.read_text(encoding="utf-8"), f"{option} {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{option} {path}: the file cannot be read: {error}") from error


def _checked(text: str, source: str) -> str:
    key = next(iter(text.strip().splitlines()), "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise OptionError(f"{source}: the key is missing, or is not printable ASCII; write one line there")
    return key
