"""`Util`: device queries and the advisory device lock (row R16)."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import IO

from ..device_state import nsps_in_use
from ..layout import installed
from .buffers import QIDList
from .machine import visible_devices
from .status import QStatus
from .strict_types import require

_SERIALIZE_VARIABLE = "QAIC_SERIALIZE_DEVICE"


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is."""

    qid: int
    status: str
    boardSerial: str


@dataclass(frozen=True)
class ResourceInfo:
    """What a device has and what is free."""

    nspTotal: int
    nspFree: int
    dramTotal: int
    dramFree: int


@dataclass(frozen=True)
class PerformanceInfo:
    """Clock and power; constants, because nothing runs."""

    nspFrequencyHz: int = 1_000_000_000
    boardPowerWatts: float = 20.0


class Util:
    """Queries that need no context."""

    def __init__(self) -> None:
        self._locks: dict[int, IO[str]] = {}

    def getDeviceIds(self, deviceType: int = 0) -> tuple[QStatus, QIDList]:
        """Ids of the visible devices."""
        require(deviceType, int, "getDeviceIds")
        return QStatus.QS_SUCCESS, QIDList(list(visible_devices()))

    def getDeviceInfo(self, qid: int) -> tuple[QStatus, DeviceInfo | None]:
        """Identity and status of a device; QS_NODEV when it is unknown or hidden."""
        device = visible_devices().get(require(qid, int, "getDeviceInfo"))
        if device is None:
            return QStatus.QS_NODEV, None
        return QStatus.QS_SUCCESS, DeviceInfo(device.qid, device.status, device.board_serial)

    def getResourceInfo(self, qid: int) -> tuple[QStatus, ResourceInfo | None]:
        """NSPs and memory of a ready device."""
        device = visible_devices().get(require(qid, int, "getResourceInfo"))
        if device is None or not device.is_ready:
            return QStatus.QS_NODEV, None
        free = device.nsp_total - nsps_in_use(installed())[qid]
        return QStatus.QS_SUCCESS, ResourceInfo(
            device.nsp_total, free, device.dram_total_mb * 1024, device.dram_total_mb * 1024
        )

    def getPerformanceInfo(self, qid: int) -> tuple[QStatus, PerformanceInfo | None]:
        """Clock and power of a ready device."""
        device = visible_devices().get(require(qid, int, "getPerformanceInfo"))
        if device is None or not device.is_ready:
            return QStatus.QS_NODEV, None
        return QStatus.QS_SUCCESS, PerformanceInfo()

    def getAicVersion(self) -> tuple[QStatus, int, int, int, str]:
        """Status, major, minor, patch, variant."""
        major, minor, patch = map(int, installed().profile().base_version.split("."))
        return QStatus.QS_SUCCESS, major, minor, patch, "standin"

    def checkLibraryVersion(self) -> QStatus:
        """Module and library are one thing here."""
        return QStatus.QS_SUCCESS

    def lockDevice(self, qid: int, lock: bool, block: bool) -> QStatus:
        """Take or give back the advisory lock of a device; QS_UNSUPPORTED unless `QAIC_SERIALIZE_DEVICE=1`."""
        if qid not in visible_devices():
            return QStatus.QS_NODEV
        if os.environ.get(_SERIALIZE_VARIABLE) != "1":
            return QStatus.QS_UNSUPPORTED
        if not lock:
            held = self._locks.pop(qid, None)
            if held is None:
                return QStatus.QS_INVAL
            held.close()
            return QStatus.QS_SUCCESS
        folder = installed().lock_folder
        folder.mkdir(exist_ok=True)
        handle = (folder / f"device_{qid}").open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.close()
            return QStatus.QS_BUSY
        self._locks[qid] = handle
        return QStatus.QS_SUCCESS
