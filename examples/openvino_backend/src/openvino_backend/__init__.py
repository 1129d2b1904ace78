"""The qeff_framework backend `openvino`. Importing this loads the descriptor only."""

from openvino_backend.descriptor import OpenVinoBackend

__all__ = ["OpenVinoBackend"]
