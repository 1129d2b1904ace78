"""What target ``aic`` can do here. It is one of two kinds of targets, so what is missing is a warning with its remedy."""

from __future__ import annotations

from collections.abc import Sequence

from qeff_framework.plugin_api import BackendUnavailableError, Check, Status
from qeff_framework.toolchains import ProbeError, ask_command
from qnn_backend.aic.qaic import shared
from qnn_backend.aic.sdk import PYTHON_VARIABLE, DescriptionError, Sdk, find_sdk
from qnn_backend.constants import QnnConstants

_TIME_LIMIT_SECONDS = 20
_VARIABLE = QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME


def check_aic() -> tuple[Check, ...]:
    """Without ``QNN_SDK_ROOT`` and without the qaic distribution this runs nothing."""
    return (_check_distribution(), *_check_sdk(), *_check_runtime())


def abilities(checks: Sequence[Check]) -> tuple[str, ...]:
    """What the target can do here according to `check_aic`: ``"compile"``, ``"execute"``, both or nothing."""
    well = {check.name.removeprefix("aic: ") for check in checks if check.status is Status.OK}
    needed = {
        "compile": {"qaic distribution", "QAIRT SDK", "converter"},
        "execute": {"qaic distribution", "runtime", "devices"},
    }
    return tuple(name for name, parts in needed.items() if parts <= well)


def _check_distribution() -> Check:
    try:
        shared()
    except BackendUnavailableError as error:
        return Check(
            name="aic: qaic distribution",
            status=Status.WARNING,
            detail="qeff-qaic-backend does not load: target aic cannot be used",
            remedy=str(error).rpartition(": ")[2],
        )
    return Check(name="aic: qaic distribution", status=Status.OK, detail="installed")


def _check_sdk() -> tuple[Check, ...]:
    sdk = find_sdk()
    if sdk is None:
        return (
            Check(
                name="aic: QAIRT SDK",
                status=Status.WARNING,
                detail=f"{_VARIABLE} is not set: cannot compile for target aic",
                remedy=f"install the QAIRT SDK with its Cloud AI back end and set {_VARIABLE} to its folder",
            ),
        )
    if sdk.missing:
        return (
            Check(
                name="aic: QAIRT SDK",
                status=Status.WARNING,
                detail=f"{', '.join(map(str, sdk.missing))} is not there or not executable",
                remedy=f"set {_VARIABLE} to a complete QAIRT SDK",
            ),
        )
    try:
        version = sdk.description()["version"]
    except DescriptionError as error:
        return (
            Check(
                name="aic: QAIRT SDK",
                status=Status.WARNING,
                detail=str(error),
                remedy=f"set {_VARIABLE} to an undamaged QAIRT SDK",
            ),
        )
    except ImportError:
        # Said by the check of the distribution: the same extra brings both.
        return ()
    return (Check(name="aic: QAIRT SDK", status=Status.OK, detail=f"{version} in {sdk.root}"), _check_converter(sdk))


def _check_converter(sdk: Sdk) -> Check:
    """The converter starts: its Python packages are what is missing most often."""
    try:
        ask_command(
            [*sdk.converter_command(), "--help"],
            subject="qairt-converter --help",
            time_limit_seconds=_TIME_LIMIT_SECONDS,
            environment=sdk.environment(),
        )
    except ProbeError as error:
        return Check(
            name="aic: converter",
            status=Status.WARNING,
            detail=str(error),
            remedy=f"let {PYTHON_VARIABLE} name a Python interpreter that has the packages that the SDK asks for",
        )
    return Check(name="aic: converter", status=Status.OK, detail="starts")


def _check_runtime() -> tuple[Check, ...]:
    """What the backend ``qaic`` says about running; a program can be compiled on one machine and run on another."""
    try:
        qaic = shared()
    except BackendUnavailableError:
        return ()
    sdk = qaic.find_sdk()
    checks = [qaic.check_runtime(sdk)]
    if checks[0].status is Status.OK:
        checks.append(qaic.check_devices(sdk))
    return tuple(
        Check(
            name=f"aic: {check.name}",
            status=Status.WARNING if check.status is Status.FAILED else check.status,
            detail=check.detail,
            remedy=check.remedy,
        )
        for check in checks
    )
