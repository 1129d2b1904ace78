"""Programs of some of a model's layers each, see the option ``num_layers_per_program``: they are loaded together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qaic_backend.devices import MAX_CORES


def window_of(metadata: Mapping[str, Any]) -> tuple[int, int]:
    """The number of a program among those that the layers were cut into, and how many these are; (0, 1) for an uncut one."""
    window = metadata.get("window", {"number": 0, "of": 1})
    return int(window["number"]), int(window["of"])


def room_of_windows(windows: int, options: Mapping[str, Any]) -> str:
    """How programs that are loaded together find cores."""
    cores = int(options["num_cores"])
    return (
        f"The layers are cut into {windows} programs, which are loaded together and take {cores} cores each: a device of "
        f"{MAX_CORES} cores has room for {MAX_CORES // cores}. Compile with num_cores={max(1, MAX_CORES // windows)}, with more "
        "layers per program, or name devices for each program in device_ids"
    )
