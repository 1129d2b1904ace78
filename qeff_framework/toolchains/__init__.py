"""Compilers and probes as child processes: a crash or a hang of native code must not take the caller along.

Part of the surface that backends may import, versioned with `qeff_framework.plugin_api`. Importing it loads the standard library
only.
"""

from __future__ import annotations

from qeff_framework.toolchains.diagnosis import Diagnosis
from qeff_framework.toolchains.probes import ProbeError, ask_command, ask_python
from qeff_framework.toolchains.processes import Ended, Outcome, run_process
from qeff_framework.toolchains.scripts import own_copies
from qeff_framework.toolchains.toolchain import LOG_FILE, Toolchain, keep_log

__all__ = [
    "LOG_FILE",
    "Diagnosis",
    "Ended",
    "Outcome",
    "ProbeError",
    "Toolchain",
    "ask_command",
    "ask_python",
    "keep_log",
    "own_copies",
    "run_process",
]
