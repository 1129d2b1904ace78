"""Importing it computes for longer than an import may, on any processor."""

from __future__ import annotations

import time

from tests.testing.toy_backend import ToyBackend

_BEGUN = time.process_time()
while time.process_time() - _BEGUN < 1.2:
    pass


class Door(ToyBackend):
    pass
