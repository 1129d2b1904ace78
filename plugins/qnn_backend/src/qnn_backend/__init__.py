"""The QEFF backend ``qnn``: Qualcomm NPUs through the compilers of the QNN stack.

Two targets: the Hexagon NPU of a Snapdragon or Dragonwing chip (compiled and simulated with the ``onnxruntime-qnn`` wheel), and
Cloud AI 100 through the QAIRT tools (``target="aic"``).
"""

from __future__ import annotations

from qnn_backend.constants import QnnConstants
from qnn_backend.descriptor import QnnBackend
from qnn_backend.options import QnnOptions, QnnRuntimeOptions

__all__ = ["QnnBackend", "QnnConstants", "QnnOptions", "QnnRuntimeOptions"]
