"""Where things are in an installed stand-in tree, derived from the place of this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .profiles import PROFILES, Profile

TARGET = "x86_64-linux-clang"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Paths of one tree."""

    root: Path

    @property
    def tools(self) -> Path:
        return self.root / "bin" / TARGET

    @property
    def libraries(self) -> Path:
        return self.root / "lib" / TARGET

    @property
    def python_folder(self) -> Path:
        """Folder of the SDK's Python packages."""
        return self.root / "lib" / "python"

    @property
    def converter(self) -> Path:
        return self.tools / "qairt-converter"

    @property
    def generator(self) -> Path:
        return self.tools / "qnn-context-binary-generator"

    @property
    def backend_library(self) -> Path:
        return self.libraries / "libQnnAic.so"

    @property
    def extensions_library(self) -> Path:
        return self.libraries / "libQnnAicNetRunExtensions.so"

    @property
    def model_library(self) -> Path:
        return self.libraries / "libQnnModelDlc.so"

    @property
    def description_file(self) -> Path:
        return self.root / "sdk.yaml"

    @property
    def private(self) -> Path:
        """Folder of the stand-in's own files; the real SDK has no such folder."""
        return self.root / "standin"

    @property
    def profile_file(self) -> Path:
        return self.private / "profile.json"

    @property
    def log_file(self) -> Path:
        return self.private / "invocations.jsonl"

    def profile(self) -> Profile:
        """The profile that the tree was installed with."""
        return PROFILES[json.loads(self.profile_file.read_text(encoding="utf-8"))["profile"]]


def installed() -> Layout:
    """The tree that this copy of the package is part of (`<root>/standin/qairt/qairt_standin/layout.py`)."""
    return Layout(root=Path(__file__).resolve().parents[3])
