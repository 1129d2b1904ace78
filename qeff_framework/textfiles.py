"""Text files that users write: UTF-8 with or without a byte order mark, lines that end with LF or CR LF.

Python's own line splitting also breaks at form feeds, U+2028 and others, which are characters of a text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The text of a file, without byte order mark and with LF at the ends of lines.

    Raises `OSError` or `UnicodeDecodeError` where it cannot be read.
    """
    return _decoded(path.read_bytes())


def read_input(path: str) -> str:
    """`read_text` of a file, or of standard input for ``"-"``."""
    if path != "-":
        return read_text(Path(path))
    raw = getattr(sys.stdin, "buffer", None)
    # A stream of text may stand in for standard input.
    return _decoded(sys.stdin.read().encode() if raw is None else raw.read())


def split_lines(text: str) -> list[str]:
    """The lines of a text that `read_text` returned; nothing behind the last line end is no line."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises `ValueError` for what is none, and for a name that an object has twice: Python's reader keeps the last value alone.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the name {repeated!r} more than once")
    return content


def _decoded(data: bytes) -> str:
    return data.decode("utf-8-sig").replace("\r\n", "\n")
