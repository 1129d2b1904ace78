"""What the tools are told to do wrong, through environment variables that are read at each use.

`QAIRT_STANDIN_FAULTS` holds a JSON object made by `fault_environment`. `QAIRT_STANDIN_NOISE=1` prints harmless text.
`QAIRT_STANDIN_QPC_SUFFIX=1` adds `_backend` to the name of the back end's binary (row N12).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields

VARIABLE = "QAIRT_STANDIN_FAULTS"
NOISE_VARIABLE = "QAIRT_STANDIN_NOISE"
SUFFIX_VARIABLE = "QAIRT_STANDIN_QPC_SUFFIX"

TOOLS = ("converter", "generator")


@dataclass(frozen=True, kw_only=True)
class ProcessFault:
    """How a tool misbehaves.

    `exit_code` and `stderr` replace its work; `sleep_seconds` delays it; `kill` sends SIGKILL to itself; `truncate_output`
    leaves that many bytes of its result and then ends with `exit_code`. `device_memory_bytes` is for the generator only.
    """

    exit_code: int | None = None
    stderr: str | None = None
    sleep_seconds: float = 0.0
    kill: bool = False
    truncate_output: int | None = None
    device_memory_bytes: int | None = None


def fault_environment(
    *, converter: ProcessFault | None = None, generator: ProcessFault | None = None
) -> dict[str, str]:
    """The environment entry that switches the given faults on."""
    faults = {"converter": converter, "generator": generator}
    return {VARIABLE: json.dumps({tool: asdict(fault) for tool, fault in faults.items() if fault}, sort_keys=True)}


def active_fault(tool: str) -> ProcessFault:
    """The fault of a tool.

    Raises:
        ValueError: the variable names something unknown; a misspelt fault would make a test pass for nothing.
    """
    document = json.loads(os.environ.get(VARIABLE, "{}"))
    unknown = {*document} - {*TOOLS}
    known = {field.name for field in fields(ProcessFault)}
    for fault in document.values():
        unknown |= {*fault} - known
    if unknown:
        raise ValueError(f"{VARIABLE}: unknown {', '.join(sorted(unknown))}")
    return ProcessFault(**document.get(tool, {}))


def is_on(variable: str) -> bool:
    """Whether one of the switches is on."""
    return os.environ.get(variable) == "1"
