"""Fault injection: what the stand-in is told to do wrong, through one environment variable (row G5).

`QAIC_STANDIN_FAULTS` holds a JSON object:

    {"compile": {"exit_code": 1, "stderr": "text", "sleep_seconds": 2, "kill": true, "truncate_output": 100,
                 "device_memory_bytes": 1000},
     "util":    {"exit_code": 1, "stderr": "text", "sleep_seconds": 20, "kill": true},
     "runtime": {"Program.load": {"status": 500}, "ExecObj": {"raises": "text"}, "execute": {"sleep_seconds": 0.5}}}

The variable is read at each use. Unknown names are an error, because a misspelt fault would make a test pass for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

VARIABLE = "QAIC_STANDIN_FAULTS"
NOISE_VARIABLE = "QAIC_STANDIN_NOISE"
NEGATIVE_SCATTER_VARIABLE = "QAIC_STANDIN_NEGATIVE_SCATTER"
ROUNDING_VARIABLE = "QAIC_STANDIN_ROUNDING"

RUNTIME_CALLS = (
    "Context",
    "Context.setLogLevel",
    "Qpc",
    "Qpc.getIoDescriptor",
    "Program.load",
    "Program.activate",
    "Program.deactivate",
    "Program.unload",
    "ExecObj",
    "ExecObj.setData",
    "ExecObj.waitForCompletion",
    "ExecObj.getData",
    "Queue.enqueue",
    "execute",
)


class FaultError(ValueError):
    """The fault variable does not say something the stand-in understands."""


@dataclass(frozen=True, kw_only=True)
class ProcessFault:
    """How a tool misbehaves.

    `exit_code` and `stderr` replace the work of the tool; `sleep_seconds` delays it; `kill` sends SIGKILL to itself in
    the middle of the work. `truncate_output` (compiler only) leaves the first bytes of `programqpc.bin` in place, without
    the atomic rename, and then ends with `exit_code`. `device_memory_bytes` (compiler only) sets the memory of a device.
    """

    exit_code: int | None = None
    stderr: str | None = None
    sleep_seconds: float = 0.0
    kill: bool = False
    truncate_output: int | None = None
    device_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CallFault:
    """How one runtime call misbehaves: a status instead of the work, an exception, or a delay before the work."""

    status: int | None = None
    raises: str | None = None
    sleep_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """All faults that are switched on."""

    compile: ProcessFault
    util: ProcessFault
    runtime: Mapping[str, CallFault]


def fault_environment(
    *,
    compile: ProcessFault | None = None,
    util: ProcessFault | None = None,
    runtime: Mapping[str, CallFault] | None = None,
) -> dict[str, str]:
    """The environment entry that switches the given faults on."""
    document = {
        "compile": asdict(compile or ProcessFault()),
        "util": asdict(util or ProcessFault()),
        "runtime": {call: asdict(fault) for call, fault in (runtime or {}).items()},
    }
    text = json.dumps(document, sort_keys=True)
    parse_faults(text)
    return {VARIABLE: text}


def active_faults() -> Faults:
    """The faults of the current environment.

    Raises:
        FaultError: the variable is malformed.
    """
    return parse_faults(os.environ.get(VARIABLE, "{}"))


def parse_faults(text: str) -> Faults:
    """Read the JSON form described in the module docstring."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise FaultError(f"{VARIABLE} is not JSON: {error}") from error
    _reject_unknown(document, ("compile", "util", "runtime"), "section")
    runtime = document.get("runtime", {})
    _reject_unknown(runtime, RUNTIME_CALLS, "runtime call")
    return Faults(
        compile=ProcessFault(**_checked(document.get("compile", {}), ProcessFault)),
        util=ProcessFault(**_checked(document.get("util", {}), ProcessFault)),
        runtime={call: CallFault(**_checked(fault, CallFault)) for call, fault in runtime.items()},
    )


def noise_is_on() -> bool:
    """Whether the tools print harmless extra text (row G6)."""
    return os.environ.get(NOISE_VARIABLE) == "1"


def _checked(values: Mapping[str, Any], kind: type[ProcessFault | CallFault]) -> Mapping[str, Any]:
    _reject_unknown(values, tuple(field.name for field in fields(kind)), "fault")
    return values


def _reject_unknown(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise FaultError(f"{VARIABLE}: unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")
