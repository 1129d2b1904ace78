"""Applies the injected faults of runtime calls (row G5)."""

from __future__ import annotations

import time

from ..faults import active_faults
from .status import QStatus


def injected_status(call: str) -> QStatus | None:
    """Delay as told, then the status that replaces the work of `call`, or None to go on.

    Raises:
        RuntimeError: the fault says that the call raises.
    """
    fault = active_faults().runtime.get(call)
    if fault is None:
        return None
    time.sleep(fault.sleep_seconds)
    if fault.raises is not None:
        raise RuntimeError(fault.raises)
    return None if fault.status is None else QStatus(fault.status)


def raise_injected(call: str) -> None:
    """For constructors, which have no status to return: any injected failure is an exception.

    Raises:
        RuntimeError: a fault is set for `call`.
    """
    status = injected_status(call)
    if status is not None:
        raise RuntimeError(f"{call} failed: {status.name}")
