"""ONNX Runtime's own kernels."""

from __future__ import annotations

CONTRIB = "com.microsoft"
#: `accuracy_level` of the kernels for compressed weights that makes 8-bit numbers of the activations.
INT8_ACTIVATIONS = 4
#: `accuracy_level` that leaves them in float32.
FLOAT32_ACTIVATIONS = 1
