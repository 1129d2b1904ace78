"""Where things are in an installed stand-in tree.

The paths are derived from the place of this file, so a tree can be moved and several trees can be used by one process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .profiles import PROFILES, Profile


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Paths of one installed tree."""

    root: Path

    @property
    def private(self) -> Path:
        """Folder of the stand-in's own files; the real SDK has no such folder."""
        return self.root / "standin"

    @property
    def profile_file(self) -> Path:
        return self.private / "profile.json"

    @property
    def devices_file(self) -> Path:
        return self.private / "devices.json"

    @property
    def state_file(self) -> Path:
        return self.private / "device_state.json"

    @property
    def log_file(self) -> Path:
        return self.private / "invocations.jsonl"

    @property
    def lock_folder(self) -> Path:
        return self.private / "locks"

    def version_file(self, which: str) -> Path:
        """`versions/apps.xml` or `versions/platform.xml`."""
        return self.root / "versions" / f"{which}.xml"

    def profile(self) -> Profile:
        """The profile that this tree was installed with."""
        return PROFILES[json.loads(self.profile_file.read_text(encoding="utf-8"))["profile"]]


def installed() -> Layout:
    """The layout of the tree this copy of the package is part of (`<root>/standin/qaic_standin/layout.py`)."""
    return Layout(root=Path(__file__).resolve().parents[2])
