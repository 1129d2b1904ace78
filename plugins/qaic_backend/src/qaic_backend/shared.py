"""What another backend for the same card may use: the lowering, checks, messages and side files of the compiler, the session.

The names below keep their meaning within a minor version of this distribution; everything else in it is private. Each is loaded
when it is first asked for, so that opening a session loads neither onnx nor the lowering.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qaic_backend.compiler.checks import check_program
    from qaic_backend.compiler.failures import DIAGNOSIS
    from qaic_backend.compiler.side_files import flat_specializations
    from qaic_backend.lowering import passes
    from qaic_backend.options import QaicRuntimeOptions
    from qaic_backend.probe import check_devices, check_runtime
    from qaic_backend.runtime import open_session
    from qaic_backend.sdk import find_sdk

_PLACES = {
    "DIAGNOSIS": "compiler.failures",
    "QaicRuntimeOptions": "options",
    "check_devices": "probe",
    "check_program": "compiler.checks",
    "check_runtime": "probe",
    "find_sdk": "sdk",
    "flat_specializations": "compiler.side_files",
    "open_session": "runtime",
    "passes": "lowering",
}

__all__ = [
    "DIAGNOSIS",
    "QaicRuntimeOptions",
    "check_devices",
    "check_program",
    "check_runtime",
    "find_sdk",
    "flat_specializations",
    "open_session",
    "passes",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qaic_backend.{_PLACES[name]}"), name)
