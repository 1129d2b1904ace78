"""The ``qeff`` ONNX dialect: high-level ops that a backend finds by name and lowers to what its compiler does best.

Each op has a torch side (`ops`), an ONNX body in standard ops (`functions`) and a NumPy meaning (`reference`).
"""

from __future__ import annotations
