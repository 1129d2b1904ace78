"""What the tools have in common: log entry, faults, noise, and errors to exit codes."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from ...qaic.qaic_standin.compiler.errors import CompileError
from ...qaic.qaic_standin.invocation_log import InvocationRecord
from .errors import EXIT_FAILURE, ToolError
from .faults import NOISE_VARIABLE, ProcessFault, active_fault, is_on
from .layout import Layout

# sysexits EX_SOFTWARE: a defect of the stand-in cannot be taken for a refusal.
EXIT_DEFECT = 70

#: Does the tool's work; gets the fault for what it does to the output.
Work = Callable[[InvocationRecord, ProcessFault], None]


def run_tool(key: str, name: str, argv: Sequence[str], layout: Layout, work: Work) -> int:
    """Run one tool, log the run, return the exit code. `key` is the tool's name among the faults."""
    record = InvocationRecord(layout.log_file, name, argv)
    try:
        exit_code = _run(key, record, work)
    except ToolError as error:
        sys.stderr.write(f"{error.text}\n")
        exit_code = error.exit_code
    except CompileError as error:
        sys.stderr.write(f"[ ERROR ] {error.text}\n")
        exit_code = EXIT_FAILURE
    except SystemExit as error:
        # argparse has printed its usage line.
        exit_code = int(error.code or 0)
    except Exception:  # noqa: BLE001 -- reported with an exit code that no caller can mistake
        sys.stderr.write(f"Defect in the stand-in:\n{traceback.format_exc()}")
        exit_code = EXIT_DEFECT
    record.finish(exit_code)
    return exit_code


def _run(key: str, record: InvocationRecord, work: Work) -> int:
    fault = active_fault(key)
    if is_on(NOISE_VARIABLE):
        sys.stderr.write("[ WARNING ] stand-in noise, nothing is wrong\n")
        sys.stdout.write("[ INFO ] progress\n")
        sys.stdout.flush()
    time.sleep(fault.sleep_seconds)
    if fault.kill:
        record.finish(-signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.stderr is not None:
        sys.stderr.write(fault.stderr)
    if fault.truncate_output is None and (fault.exit_code is not None or fault.stderr is not None):
        return EXIT_FAILURE if fault.exit_code is None else fault.exit_code
    work(record, fault)
    return fault.exit_code or 0
