"""Which NSPs of which device are in use, shared by all processes of the stand-in machine (rows R4 and U4)."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

from .devices import read_devices
from .file_lock import locked
from .layout import Layout


class NspAllocationError(Exception):
    """A device has fewer free NSPs than asked for."""


def nsps_in_use(layout: Layout) -> dict[int, int]:
    """NSPs in use per QID, for every device of the machine. Processes that have died hold nothing."""
    with locked(layout.state_file):
        return _used(layout, _live_activations(layout))


def activations_per_device(layout: Layout) -> dict[int, int]:
    """Number of activated programs per QID."""
    with locked(layout.state_file):
        activations = _live_activations(layout)
    counts = {device.qid: 0 for device in read_devices(layout.devices_file)}
    for activation in activations.values():
        for qid in activation["cores"]:
            counts[int(qid)] = counts.get(int(qid), 0) + 1
    return counts


def allocate(layout: Layout, cores: Mapping[int, int]) -> str:
    """Take `cores[qid]` NSPs on each device, all or none.

    Returns:
        The handle for `release`.

    Raises:
        NspAllocationError: not enough NSPs are free; nothing was taken.
    """
    totals = {device.qid: device.nsp_total for device in read_devices(layout.devices_file)}
    with locked(layout.state_file):
        activations = _live_activations(layout)
        used = _used(layout, activations)
        for qid, wanted in cores.items():
            free = totals[qid] - used[qid]
            if wanted > free:
                raise NspAllocationError(f"device {qid}: {wanted} NSPs wanted, {free} of {totals[qid]} free")
        handle = uuid.uuid4().hex
        activations[handle] = {
            "pid": os.getpid(),
            "cores": {str(qid): wanted for qid, wanted in cores.items()},
        }
        _write(layout, activations)
    return handle


def release(layout: Layout, handle: str) -> None:
    """Give back what `allocate` took."""
    with locked(layout.state_file):
        activations = _live_activations(layout)
        activations.pop(handle, None)
        _write(layout, activations)


def release_all(layout: Layout) -> None:
    """Forget every activation, as a SoC reset does."""
    with locked(layout.state_file):
        _write(layout, {})


def _used(layout: Layout, activations: Mapping[str, Any]) -> dict[int, int]:
    used = {device.qid: 0 for device in read_devices(layout.devices_file)}
    for activation in activations.values():
        for qid, cores in activation["cores"].items():
            used[int(qid)] = used.get(int(qid), 0) + cores
    return used


def _live_activations(layout: Layout) -> dict[str, Any]:
    if not layout.state_file.exists():
        return {}
    stored: dict[str, Any] = json.loads(layout.state_file.read_text(encoding="utf-8"))
    return {handle: entry for handle, entry in stored.items() if _is_alive(entry["pid"])}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(layout: Layout, activations: Mapping[str, Any]) -> None:
    layout.state_file.write_text(json.dumps(activations, indent=2, sort_keys=True), encoding="utf-8")
