"""Importing it computes tables."""

from __future__ import annotations

from tests.testing.toy_backend import ToyBackend

TABLE = sum(number * number for number in range(30_000_000))


class Door(ToyBackend):
    pass
