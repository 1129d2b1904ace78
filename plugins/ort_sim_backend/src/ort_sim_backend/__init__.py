"""The QEFF backend ``ort_sim``: runs compiled models on the CPU with ONNX Runtime and behaves like an accelerator.

It keeps the accelerator's rules (static specializations, retained state, bounded context), so that what runs here runs there.
"""

from __future__ import annotations

from ort_sim_backend.descriptor import OrtSimBackend
from ort_sim_backend.options import OrtSimOptions, OrtSimRuntimeOptions

__all__ = ["OrtSimBackend", "OrtSimOptions", "OrtSimRuntimeOptions"]
