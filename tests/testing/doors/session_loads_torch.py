"""Running a program loads torch."""

from __future__ import annotations

from tests.testing.toy_backend import ToyBackend


class Door(ToyBackend):
    implementation = "tests.testing.torch_hooks:TorchHooks"
