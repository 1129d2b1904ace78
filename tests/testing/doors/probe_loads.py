"""Its probe loads the runtime into the process."""

from __future__ import annotations

from qeff_framework.plugin_api import Probe
from tests.testing.toy_backend import ToyBackend


class Door(ToyBackend):
    def probe(self) -> Probe:
        import onnxruntime  # noqa: F401

        return super().probe()
