"""The JSONL log of every tool run and of the runtime's life-cycle calls (row G4)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .file_lock import locked

_ENVIRONMENT_PREFIXES = ("QAIC_", "QEFF_", "QNN_", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")
# Side files live in staging folders that are renamed or removed later, so tests need their text and not only the path.
_MAX_TEXT_BYTES = 256 * 1024
_TEXT_SUFFIXES = (".json", ".yaml", ".yml")


class InvocationRecord:
    """Collects what one tool run does; `finish` appends it to the log as one line."""

    def __init__(self, log_file: Path, tool: str, argv: Sequence[str]) -> None:
        self._log_file = log_file
        self._entry: dict[str, Any] = {
            "tool": tool,
            "argv": list(argv),
            "cwd": str(Path.cwd()),
            "env": {
                name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT_PREFIXES)
            },
            "pid": os.getpid(),
            "read": [],
            "written": [],
        }

    def read(self, path: Path) -> None:
        """Note that `path` was read; the text of small JSON and YAML files is kept."""
        entry: dict[str, Any] = {"path": str(path)}
        if path.suffix in _TEXT_SUFFIXES and path.stat().st_size <= _MAX_TEXT_BYTES:
            entry["text"] = path.read_text(encoding="utf-8", errors="replace")
        self._entry["read"].append(entry)

    def wrote(self, path: Path) -> None:
        """Note that `path` was written."""
        self._entry["written"].append(str(path))

    def finish(self, exit_code: int) -> None:
        """Append the line. Called before a fault kills the process, because nothing can be written afterwards."""
        append(self._log_file, {**self._entry, "exit_code": exit_code})


def append(log_file: Path, entry: Mapping[str, Any]) -> None:
    """Append one JSON line, safe against other processes."""
    with locked(log_file), log_file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry, sort_keys=True) + "\n")
