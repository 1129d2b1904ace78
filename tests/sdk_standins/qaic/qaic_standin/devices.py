"""The devices of a stand-in machine and the scenarios of row U2.

Values such as serial numbers are invented. What matters is the form that `qaic-util -q` prints and the resources that the
runtime accounts for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

READY = "Ready"
ERROR = "Error"


@dataclass(frozen=True, kw_only=True)
class StandinDevice:
    """One SoC as the driver sees it."""

    qid: int
    status: str = READY
    sku: str = "PCIe Ultra"
    nsp_total: int = 16
    board_serial: str = "STANDIN-BOARD-0"
    capabilities: tuple[str, ...] = ("HybridBoot+", "MDP+")
    image_variant: str = "AIC100.standin"
    dram_total_mb: int = 32768

    @property
    def is_ready(self) -> bool:
        return self.status == READY

    @property
    def generation(self) -> str:
        """`ai100` or `ai200`, by the rule that users of `qaic-util` apply to the image variant."""
        return "ai200" if "AIC200" in self.image_variant.upper() else "ai100"


def standard_card() -> tuple[StandinDevice, ...]:
    """One single-SoC card with all 16 NSPs."""
    return (StandinDevice(qid=0, sku="PCIe Pro"),)


def ultra_card(first_qid: int = 0, board_serial: str = "STANDIN-BOARD-0") -> tuple[StandinDevice, ...]:
    """One Ultra card: four QIDs with one board serial."""
    return tuple(StandinDevice(qid=first_qid + i, board_serial=board_serial) for i in range(4))


def two_boards() -> tuple[StandinDevice, ...]:
    """Two Ultra cards, QIDs 0 to 7."""
    return ultra_card(0, "STANDIN-BOARD-0") + ultra_card(4, "STANDIN-BOARD-1")


def error_device() -> tuple[StandinDevice, ...]:
    """One device that did not boot."""
    return (StandinDevice(qid=0, status=ERROR),)


def ai200_card() -> tuple[StandinDevice, ...]:
    """One device of the next generation."""
    return (StandinDevice(qid=0, image_variant="AIC200.standin"),)


def mdp_off_card() -> tuple[StandinDevice, ...]:
    """An Ultra card on which multi-device execution was not enabled."""
    return tuple(StandinDevice(qid=i, capabilities=("HybridBoot+",)) for i in range(4))


def fourteen_nsp_card() -> tuple[StandinDevice, ...]:
    """A Standard card that exposes 14 NSPs."""
    return (StandinDevice(qid=0, sku="PCIe", nsp_total=14),)


def derived_device() -> tuple[StandinDevice, ...]:
    """A whole device and a partition of one; partitions have QIDs from 100."""
    return (StandinDevice(qid=0), StandinDevice(qid=100, nsp_total=8, board_serial="STANDIN-BOARD-1"))


SCENARIOS: dict[str, Callable[[], tuple[StandinDevice, ...]]] = {
    "none": lambda: (),
    "standard": standard_card,
    "ultra": ultra_card,
    "two_boards": two_boards,
    "error": error_device,
    "ai200": ai200_card,
    "mdp_off": mdp_off_card,
    "fourteen_nsp": fourteen_nsp_card,
    "derived": derived_device,
}


def write_devices(path: Path, devices: Sequence[StandinDevice]) -> None:
    """Store the machine's devices; QIDs must be unique."""
    qids = [device.qid for device in devices]
    if len(set(qids)) != len(qids):
        raise ValueError(f"QIDs must be unique, got {qids}")
    path.write_text(json.dumps([asdict(device) for device in devices], indent=2), encoding="utf-8")


def read_devices(path: Path) -> tuple[StandinDevice, ...]:
    """The devices of the machine, in the order of their definition."""
    return tuple(
        StandinDevice(**{**entry, "capabilities": tuple(entry["capabilities"])})
        for entry in json.loads(path.read_text(encoding="utf-8"))
    )
