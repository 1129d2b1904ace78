"""Importing it changes the environment of the process."""

from __future__ import annotations

import os

from tests.testing.toy_backend import ToyBackend

os.environ["OMP_PROC_BIND"] = "true"


class Door(ToyBackend):
    pass
