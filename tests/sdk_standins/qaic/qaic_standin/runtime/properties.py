"""Property structs. Names that the profile does not have are refused, so that callers must look before they set."""

from __future__ import annotations

from typing import ClassVar

from ..layout import installed
from .strict_types import require

_DEFAULT_TIMEOUT_MS = 60_000
# What the kernel driver uses for a timeout of 0.
_KERNEL_TIMEOUT_MS = 5_000
_TIMEOUT_NAMES = ("dataPathTimeoutMs", "SubmitRetryTimeoutMs")


class ProgramProperties:
    """`QAicProgramProperties`: `devMapping` and the time limit, under the name that the SDK generation uses."""

    _DEFAULTS: ClassVar[dict[str, int | str]] = {
        "dataPathTimeoutMs": _DEFAULT_TIMEOUT_MS,
        "SubmitRetryTimeoutMs": _DEFAULT_TIMEOUT_MS,
        "devMapping": "",
    }
    devMapping: str

    def __init__(self) -> None:
        for name in installed().profile().program_properties:
            object.__setattr__(self, name, self._DEFAULTS[name])

    def __setattr__(self, name: str, value: object) -> None:
        if name not in vars(self):
            raise AttributeError(f"QAicProgramProperties has no attribute '{name}'")
        object.__setattr__(self, name, require(value, type(self._DEFAULTS[name]), name))

    def _timeout_seconds(self) -> float:
        name = next(name for name in _TIMEOUT_NAMES if name in vars(self))
        milliseconds = int(vars(self)[name])
        return (milliseconds or _KERNEL_TIMEOUT_MS) / 1000


class QueueProperties:
    """`QAicQueueProperties`."""

    numThreadsPerQueue: int

    def __init__(self) -> None:
        object.__setattr__(self, "numThreadsPerQueue", 1)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in vars(self):
            raise AttributeError(f"QAicQueueProperties has no attribute '{name}'")
        object.__setattr__(self, name, require(value, int, name))
