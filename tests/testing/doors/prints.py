"""Importing it greets the user."""

from __future__ import annotations

from tests.testing.toy_backend import ToyBackend

print("Toy SDK 1.2.3")


class Door(ToyBackend):
    pass
