"""Importing it loads NumPy."""

from __future__ import annotations

import numpy as np  # noqa: F401

from tests.testing.toy_backend import ToyBackend


class Door(ToyBackend):
    pass
