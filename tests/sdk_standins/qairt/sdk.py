"""What a test holds of an installed stand-in QAIRT SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .qairt_standin.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One line of the log that a tool wrote. `read` has the text of small YAML and JSON files."""

    tool: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    exit_code: int
    read: Mapping[Path, str | None]
    written: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class StandinQairt:
    """A stand-in SDK: its paths and its log."""

    layout: Layout

    @property
    def root(self) -> Path:
        """What `QNN_SDK_ROOT` names."""
        return self.layout.root

    @property
    def environment(self) -> dict[str, str]:
        """What sourcing the SDK's set-up script gives to a process."""
        return {
            "PATH": "/usr/bin:/bin",
            "QNN_SDK_ROOT": str(self.root),
            "PYTHONPATH": str(self.layout.python_folder),
            "LD_LIBRARY_PATH": str(self.layout.libraries),
        }

    def invocations(self, tool: str | None = None) -> list[Invocation]:
        """Runs of the tools in order, or of one tool."""
        if not self.layout.log_file.exists():
            return []
        entries = [json.loads(line) for line in self.layout.log_file.read_text(encoding="utf-8").splitlines()]
        return [
            Invocation(
                tool=entry["tool"],
                argv=tuple(entry["argv"]),
                cwd=Path(entry["cwd"]),
                env=entry["env"],
                exit_code=entry["exit_code"],
                read={Path(item["path"]): item.get("text") for item in entry["read"]},
                written=tuple(map(Path, entry["written"])),
            )
            for entry in entries
            if tool in (None, entry["tool"])
        ]
