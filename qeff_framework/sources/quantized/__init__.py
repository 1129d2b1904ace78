"""Checkpoints whose weights are packed: read as floating-point numbers, one weight at a time, without the quantiser's package.

One file for each format. Each is a function of the ``quantization_config`` and the stored tensors that yields the weights of the
unquantised checkpoint, by name; Transformers then loads them as it would load that one.
"""

from __future__ import annotations

from qeff_framework.sources.quantized.formats import METHODS, QuantizedCheckpoint

__all__ = ["METHODS", "QuantizedCheckpoint"]
