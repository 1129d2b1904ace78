"""Importing it writes a cache into the working directory."""

from __future__ import annotations

from pathlib import Path

from tests.testing.toy_backend import ToyBackend

Path("toy.cache").write_text("1")


class Door(ToyBackend):
    pass
