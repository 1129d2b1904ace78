"""Entry point of the stand-in `qaic-util` (rows U1 to U4)."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..device_state import activations_per_device, nsps_in_use
from ..devices import StandinDevice, read_devices
from ..faults import active_faults, noise_is_on
from ..invocation_log import InvocationRecord
from ..layout import Layout, installed
from .util_report import report

_EXIT_MINUS_ONE = 255
_FILTER = re.compile(r"Board serial==(\S+)\Z")


class _UsageError(Exception):
    """The command line is not understood; the text is for stderr."""


@dataclass
class _Request:
    query: bool = False
    qids: list[int] = field(default_factory=list)
    board: str | None = None
    json_file: Path | None = None
    version: bool = False
    help: bool = False


def main(tool: str, argv: Sequence[str]) -> int:
    """Run the tool and log the run.

    Returns:
        The exit code.
    """
    layout = installed()
    record = InvocationRecord(layout.log_file, tool, argv)
    try:
        exit_code = _run(argv, layout, record)
    except _UsageError as error:
        sys.stderr.write(f"{error}\n")
        exit_code = _EXIT_MINUS_ONE
    record.finish(exit_code)
    return exit_code


def _run(argv: Sequence[str], layout: Layout, record: InvocationRecord) -> int:
    fault = active_faults().util
    time.sleep(fault.sleep_seconds)
    if fault.kill:
        record.finish(-signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.exit_code is not None or fault.stderr is not None:
        sys.stderr.write(fault.stderr or "")
        return 1 if fault.exit_code is None else fault.exit_code
    request = _parse(argv)
    if request.help:
        sys.stdout.write("Stand-in for qaic-util.\n  -q  query\n  -d QID\n  -f FILTER\n  -j FILE\n  -V\n  -h\n")
        return _EXIT_MINUS_ONE
    if request.version:
        sys.stdout.write(f"{layout.profile().version}\n")
        return 0
    if not request.query:
        raise _UsageError("Nothing to do; use -q")
    devices = _selected(request, read_devices(layout.devices_file))
    text = report(
        devices,
        nsps_in_use(layout),
        activations_per_device(layout),
        layout.profile(),
        with_log_lines=noise_is_on(),
    )
    sys.stdout.write(text)
    if request.json_file:
        request.json_file.write_text(json.dumps([asdict(device) for device in devices], indent=2), encoding="utf-8")
        record.wrote(request.json_file)
    return 0


def _parse(argv: Sequence[str]) -> _Request:
    request = _Request()
    remaining = list(argv)

    def value_of(option: str) -> str:
        if not remaining:
            raise _UsageError(f"Option {option} needs a value")
        return remaining.pop(0)

    while remaining:
        match remaining.pop(0):
            case "-q":
                request.query = True
            case "-d":
                text = value_of("-d")
                if not text.isdecimal():
                    raise _UsageError(f"Device {text} invalid")
                request.qids.append(int(text))
            case "-f":
                text = value_of("-f")
                matched = _FILTER.match(text)
                if not matched:
                    raise _UsageError(f"Filter '{text}' is not understood")
                request.board = matched[1]
            case "-j":
                request.json_file = Path(value_of("-j"))
            case "-V":
                request.version = True
            case "-h":
                request.help = True
            case unknown:
                raise _UsageError(f"Unknown or unsupported option {unknown}")
    return request


def _selected(request: _Request, devices: Sequence[StandinDevice]) -> list[StandinDevice]:
    known = {device.qid for device in devices}
    for qid in request.qids:
        if qid not in known:
            raise _UsageError(f"Device {qid} invalid")
    return [
        device
        for device in devices
        if (not request.qids or device.qid in request.qids)
        and (request.board is None or device.board_serial == request.board)
    ]
