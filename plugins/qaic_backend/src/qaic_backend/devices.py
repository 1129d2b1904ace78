"""The cards of this machine, as ``qaic-util -q`` reports them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qeff_framework.toolchains import ask_command

#: Compute cores (NSPs) of one device at most, and devices that share a program peer to peer at most.
MAX_CORES, MAX_DEVICES = 16, 16

_TIME_LIMIT_SECONDS = 10
_MULTI_DEVICE = ("HybridBoot+", "MDP+")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One SoC. Values are `None` where the tool does not say them, as for a device that is not ready."""

    qid: int
    status: str
    generation: str | None
    nsp_total: int | None
    nsp_free: int | None
    board_serial: str | None
    multi_device: bool
    dram_mb: int | None = None

    @property
    def is_ready(self) -> bool:
        """It can be used."""
        return self.status == "Ready"


def query_devices(util: Path) -> tuple[Device, ...]:
    """Asks ``qaic-util``. Raises `ProbeError` when it fails or does not end in time."""
    return parse_devices(ask_command([str(util), "-q"], time_limit_seconds=_TIME_LIMIT_SECONDS))


def parse_devices(text: str) -> tuple[Device, ...]:
    """Reads the report. A device starts with ``QID n`` at the start of a line; log lines may stand in between."""
    parts = re.split(r"^QID (\d+)[ \t]*$", text, flags=re.MULTILINE)
    return tuple(_device(int(qid), block) for qid, block in zip(parts[1::2], parts[2::2], strict=True))


def _device(qid: int, block: str) -> Device:
    fields = dict(re.findall(r"^\t([^:\n]+?)\s*:[ \t]*(.*?)\s*$", block, flags=re.MULTILINE))
    variant = fields.get("FW IMAGE_VARIANT")
    capabilities = fields.get("Device Capabilities", "")
    return Device(
        qid=qid,
        status=fields.get("Status", "unknown"),
        generation=None if variant is None else "ai200" if "AIC200" in variant.upper() else "ai100",
        nsp_total=_number(fields.get("Nsp Total")),
        nsp_free=_number(fields.get("Nsp Free")),
        board_serial=fields.get("Board serial"),
        multi_device=all(capability in capabilities for capability in _MULTI_DEVICE),
        dram_mb=_number(fields.get("Dram Total", "").removesuffix("MB").strip()),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def choose_group(devices: Iterable[Device], *, count: int, cores: int) -> tuple[int, ...] | None:
    """The first `count` usable devices of one board with `cores` free cores each: they exchange data without the host."""
    boards: dict[str, list[int]] = {}
    for device in devices:
        if device.is_ready and device.multi_device and device.board_serial and (device.nsp_free or 0) >= cores:
            boards.setdefault(device.board_serial, []).append(device.qid)
    return next((tuple(qids[:count]) for qids in boards.values() if len(qids) >= count), None)
