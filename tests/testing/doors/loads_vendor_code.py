"""Importing it loads the vendor's runtime, beside other heavy libraries."""

from __future__ import annotations

import onnxruntime  # noqa: F401

from tests.testing.toy_backend import ToyBackend


class Door(ToyBackend):
    pass
