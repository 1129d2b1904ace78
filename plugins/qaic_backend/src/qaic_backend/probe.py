"""What can be compiled and executed here, and what to do where it cannot."""

from __future__ import annotations

import sys

from qaic_backend.devices import query_devices
from qaic_backend.sdk import Sdk, find_sdk, install_hint
from qeff_framework.plugin_api import Check, Probe, Status
from qeff_framework.toolchains import ProbeError, ask_python

_TIME_LIMIT_SECONDS = 20

# Native code of an SDK for another interpreter may take the process down, so it is loaded in one of its own.
_IMPORT_RUNTIME = """
import json, sys
sys.path.extend(sys.argv[1:])
import qaicrt, QAicApi_pb2
QAicApi_pb2.IoDesc
print(json.dumps({"qaicrt": getattr(qaicrt, "__file__", "built in")}))
"""


def probe() -> Probe:
    """Without any SDK this reads a few paths and runs nothing."""
    sdk = find_sdk()
    compiler = check_compiler(sdk)
    runtime = check_runtime(sdk)
    checks = [compiler, check_versions(sdk), runtime]
    if sdk.is_installed:
        checks.append(check_devices(sdk))
    can_execute = runtime.status is Status.OK and checks[-1].status is not Status.FAILED
    return Probe(
        can_compile=compiler.status is Status.OK,
        can_execute=can_execute,
        hardware=True,
        rank=100,
        checks=tuple(checks),
    )


def check_compiler(sdk: Sdk) -> Check:
    """Compile-capable: the compiler is there and executable. Only the apps SDK for x86-64 has it."""
    if sdk.compiler is not None:
        return Check(name="compiler", status=Status.OK, detail=str(sdk.compiler))
    return Check(
        name="compiler",
        status=Status.FAILED,
        detail=f"{sdk.root / 'exec' / 'qaic-compile'} is not there or not executable: cannot compile",
        remedy=f"{install_hint(sdk.root, 'Apps')}; programs compiled on another machine run without it, and "
        "compile(..., dry_run=True) makes a bundle for such a machine",
    )


def check_versions(sdk: Sdk) -> Check:
    """Versions decide the formats that the compiler reads."""
    detail = f"apps {sdk.apps_version or 'unknown'}, platform {sdk.platform_version or 'unknown'}"
    if sdk.compiler is not None and sdk.apps_version is None:
        return Check(
            name="SDK versions",
            status=Status.WARNING,
            detail=f"{detail}; the newest formats are assumed",
            remedy="name the version with the option target_sdk, for example target_sdk=1.21.6",
        )
    return Check(name="SDK versions", status=Status.OK, detail=detail)


def check_runtime(sdk: Sdk) -> Check:
    """Run-capable: the SDK's Python modules load in this interpreter."""
    if sdk.runtime_folder is None or sdk.messages_folder is None:
        missing = "dev/lib/<machine>" if sdk.runtime_folder is None else "dev/python"
        return Check(
            name="runtime",
            status=Status.FAILED,
            detail=f"{sdk.root} has no {missing}: cannot execute",
            remedy=install_hint(sdk.root, "Platform"),
        )
    folders = (str(sdk.runtime_folder), str(sdk.messages_folder))
    try:
        found = ask_python(_IMPORT_RUNTIME, *folders, subject="the import", time_limit_seconds=_TIME_LIMIT_SECONDS)
    except ProbeError as error:
        return Check(
            name="runtime",
            status=Status.FAILED,
            detail=f"qaicrt does not load in Python {sys.version_info.major}.{sys.version_info.minor}: {error}",
            remedy=f"use the Python version that the SDK's modules in {sdk.runtime_folder} were built for",
        )
    return Check(name="runtime", status=Status.OK, detail=found["qaicrt"])


def check_devices(sdk: Sdk) -> Check:
    """At least one device is ready."""
    if sdk.util is None:
        return Check(
            name="devices",
            status=Status.WARNING,
            detail=f"{sdk.root / 'tools' / 'qaic-util'} is not there: the devices are unknown, ai100 is assumed",
            remedy=install_hint(sdk.root, "Platform"),
        )
    try:
        devices = query_devices(sdk.util)
    except ProbeError as error:
        return Check(
            name="devices",
            status=Status.FAILED,
            detail=str(error),
            remedy="run the command by hand; the user must be root or in the group qaic",
        )
    ready = [device for device in devices if device.is_ready]
    if not ready:
        broken = ", ".join(f"QID {device.qid} is {device.status}" for device in devices)
        return Check(
            name="devices",
            status=Status.FAILED,
            detail=broken or "no Cloud AI device found",
            remedy="check the driver and the group qaic; a device in state Error needs a reset (qaic-util -s as root)",
        )
    described = ", ".join(
        f"QID {device.qid} ({device.generation or 'ai100, assumed'}, {device.nsp_free} of {device.nsp_total} cores free)"
        for device in ready
    )
    return Check(name="devices", status=Status.OK, detail=described)
