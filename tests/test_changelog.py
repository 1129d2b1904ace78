"""Fragments of the changelog have names that towncrier understands: it passes others over, or takes a word for an issue."""

from __future__ import annotations

import re
from pathlib import Path

FRAGMENTS = Path(__file__).parents[1] / "changelog.d"


def test_names_of_fragments() -> None:
    names = {file.name for file in FRAGMENTS.iterdir()} - {"README.md"}
    assert names
    assert not [name for name in names if not re.fullmatch(r"(\d+|\+[\w-]+)\.(removed|changed|added|fixed)\.md", name)]
