"""Whether the compiler and the simulator, or the NPU itself, can be used here."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from qeff_framework.plugin_api import Check, Status
from qeff_framework.toolchains import ProbeError, ask_python
from qnn_backend.versions import version_of

_TIME_LIMIT_SECONDS = 30
WHEELS = "Linux on x86-64 or aarch64 with glibc 2.35 or newer, Windows on x86-64 or ARM64"
INSTALL = "pip install 'onnxruntime-qnn>=2.7,<2.8' 'onnxruntime>=1.32,<2'"

# Native libraries may take the process down, so they are loaded in one of their own.
_ASK_RUNTIME = """
import json
from qnn_backend.htp.provider import describe_devices
print(json.dumps(describe_devices()))
"""


@dataclass(frozen=True, kw_only=True)
class HtpFound:
    """Result of the checks."""

    checks: tuple[Check, ...]
    hardware: bool


def check_htp() -> HtpFound:
    """Whether the wheel is there and its libraries load."""
    if version_of("onnxruntime-qnn") == "none":
        check = Check(
            name="onnxruntime-qnn",
            status=Status.FAILED,
            detail=f"not installed on this {platform.system()} {platform.machine()} machine with Python "
            f"{sys.version_info.major}.{sys.version_info.minor}: cannot compile or run for a chip with an NPU",
            remedy=f"{INSTALL}; there are wheels for {WHEELS}. The target aic works without it",
        )
        return HtpFound(checks=(check,), hardware=False)
    try:
        found = ask_python(_ASK_RUNTIME, subject="loading onnxruntime-qnn", time_limit_seconds=_TIME_LIMIT_SECONDS)
    except ProbeError as error:
        check = Check(name="onnxruntime-qnn", status=Status.FAILED, detail=str(error), remedy=INSTALL)
        return HtpFound(checks=(check,), hardware=False)
    hardware = bool(found["npu"])
    where = (
        "the NPU of this machine"
        if hardware
        else "no NPU here: programs run in the HTP simulator, whose speed is not the device's"
    )
    checks = (
        Check(name="onnxruntime-qnn", status=Status.OK, detail=f"version {found['version']}"),
        Check(name="device", status=Status.OK, detail=where),
    )
    return HtpFound(checks=checks, hardware=hardware)
