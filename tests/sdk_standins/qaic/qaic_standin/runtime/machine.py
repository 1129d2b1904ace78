"""The machine as one process sees it: devices, visibility, events in the log."""

from __future__ import annotations

import os

from .. import invocation_log
from ..devices import StandinDevice, read_devices
from ..layout import installed

_VISIBLE_VARIABLE = "QAIC_VISIBLE_DEVICES"


def visible_devices() -> dict[int, StandinDevice]:
    """Devices by QID, without those that `QAIC_VISIBLE_DEVICES` hides."""
    devices = {device.qid: device for device in read_devices(installed().devices_file)}
    wanted = os.environ.get(_VISIBLE_VARIABLE)
    if wanted is None:
        return devices
    qids = {int(text) for text in wanted.split(",") if text.strip().isdecimal()}
    return {qid: device for qid, device in devices.items() if qid in qids}


def usable_device(qid: int) -> StandinDevice:
    """The device with this QID.

    Raises:
        RuntimeError: unknown, hidden, or not ready.
    """
    device = visible_devices().get(qid)
    if device is None:
        raise RuntimeError(f"Device {qid} invalid")
    if not device.is_ready:
        raise RuntimeError(f"Device {qid} is not ready: {device.status}")
    return device


def log_event(call: str, **details: object) -> None:
    """Append a life-cycle call to the invocation log."""
    invocation_log.append(
        installed().log_file, {"tool": "qaicrt", "call": call, "pid": os.getpid(), "details": details}
    )
