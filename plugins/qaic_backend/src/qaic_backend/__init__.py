"""The QEFF backend ``qaic``: compiles for Qualcomm Cloud AI 100 with the QAIC SDK and runs programs on the card.

The SDK is a separate installation, ``/opt/qti-aic`` unless ``QEFF_QAIC_SDK_ROOT`` says otherwise. Nothing of it is imported until
a session is opened.
"""

from __future__ import annotations

from qaic_backend.descriptor import QaicBackend
from qaic_backend.options import QaicOptions, QaicRuntimeOptions

__all__ = ["QaicBackend", "QaicOptions", "QaicRuntimeOptions"]
