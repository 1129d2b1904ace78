"""From a torch module to portable ONNX on disk."""

from __future__ import annotations
