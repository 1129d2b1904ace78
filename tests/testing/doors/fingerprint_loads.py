"""Its fingerprint loads the runtime into the process."""

from __future__ import annotations

from collections.abc import Mapping

from tests.testing.toy_backend import ToyBackend


class Door(ToyBackend):
    def fingerprint(self) -> Mapping[str, str]:
        import onnx

        return {**super().fingerprint(), "onnx": onnx.__version__}
