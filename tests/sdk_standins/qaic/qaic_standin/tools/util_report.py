"""The text of `qaic-util -q` (row U1).

A block begins with `QID <n>` at column 0; every other line is a tab, the key, a colon and the value without a blank
(one key is printed with a blank, as the real tool does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..devices import StandinDevice
from ..profiles import Profile

_LOG_LINE = "[2025-01-01 00:00:00.000][standin][info] harmless log line"


def report(
    devices: Sequence[StandinDevice],
    used_nsps: Mapping[int, int],
    networks: Mapping[int, int],
    profile: Profile,
    *,
    with_log_lines: bool,
) -> str:
    """The whole output for the given devices."""
    lines = [
        f"LRT QC_IMAGE_VERSION: LRT.AIC.{profile.version}",
        "LRT IMAGE_VARIANT: LRT.AIC.REL",
        f"Number of devices queried: {len(devices)}",
    ]
    for device in devices:
        block = [f"\t{line}" for line in _block(device, used_nsps[device.qid], networks[device.qid], profile)]
        if with_log_lines:
            block.insert(len(block) // 2, _LOG_LINE)
            lines.append(_LOG_LINE)
        lines += [f"QID {device.qid}", *block]
    return "\n".join(lines) + "\n"


def _block(device: StandinDevice, used_nsps: int, networks: int, profile: Profile) -> list[str]:
    head = [
        f"Status:{device.status}",
        f"MHI ID:{device.qid}",
        f"PCI Address:0000:{device.qid + 1:02x}:00.0",
        "PCI Info:Qualcomm stand-in device",
    ]
    if not device.is_ready:
        return [*head, "Dev Link:", "SoC temperature(degree C):0", "Board power(Watts):0", "TDP Cap(Watts):0"]
    return [
        *head,
        "Max Link Speed:16 GT/s",
        "Max Link Width:x8",
        "Current Link Speed:16 GT/s",
        "Current Link Width:x8",
        "Dev Link:",
        "HW Version:2.0.0.0",
        f"HW Serial:0x{device.qid:08x}",
        "FW Version:1.0.0",
        f"FW QC_IMAGE_VERSION:AIC.{profile.version}",
        "FW OEM_IMAGE_VERSION:standin",
        f"FW IMAGE_VARIANT:{device.image_variant}",
        f"NSP Version:NSP.{profile.version}",
        f"Dram Total:{device.dram_total_mb} MB",
        f"Dram Free:{device.dram_total_mb} MB",
        "Dram Fragmentation:0.00%",
        "Vc Total:16",
        f"Vc Free:{16 - networks}",
        "Pc Total:62",
        "Pc Reserved:0",
        f"Nsp Total:{device.nsp_total}",
        f"Nsp Free:{device.nsp_total - used_nsps}",
        "Last 100ms Average Dram Bw:0 KBps",
        "MCID Total:256",
        "MCID Free:256",
        "Semaphore Total:32",
        "Semaphore Free:32",
        f"Constants Loaded:{networks}",
        f"Constants In-Use:{networks}",
        f"Networks Loaded:{networks}",
        f"Networks Active:{networks}",
        "NSP Frequency(Mhz):1000",
        "DDR Frequency(Mhz):2092",
        "Metadata Version:1.0",
        "NNC Command Protocol Version:1.0",
        "SBL Image:standin",
        "PVS Image Version:1",
        "NSP Defective PG Mask: 0x0",
        f"Sku Type:{device.sku}",
        f"Device Capabilities:{' '.join(device.capabilities)}",
        f"Board serial:{device.board_serial}",
        "SoC temperature(degree C):40",
        "Board power(Watts):20",
        "TDP Cap(Watts):75",
    ]
