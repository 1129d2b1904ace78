"""Entry point of the stand-in `qaic-compile` and `qaic-exec`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..faults import ProcessFault, active_faults, noise_is_on
from ..invocation_log import InvocationRecord
from ..layout import Layout, installed
from ..profiles import Profile
from .arguments import parse_arguments
from .errors import EXIT_FAILURE, CompileError
from .options import HELP_ARGUMENTS, LIST_OPERATORS_ARGUMENT, options_of

# sysexits EX_SOFTWARE: never used by the real tool, so a defect of the stand-in cannot be taken for a refusal.
_EXIT_STANDIN_DEFECT = 70
_OPERATOR_LIST_FILE = "OnnxSupportedOperators.txt"


def main(tool: str, argv: Sequence[str]) -> int:
    """Run the compiler with the arguments after the program name and log the run.

    Returns:
        The exit code.
    """
    layout = installed()
    record = InvocationRecord(layout.log_file, tool, argv)
    try:
        exit_code = _run(tool, argv, layout, record)
    except CompileError as error:
        sys.stderr.write(f"{error.text}\n")
        exit_code = error.exit_code
    except Exception:  # noqa: BLE001 -- reported with an exit code that no caller can mistake
        sys.stderr.write(f"Defect in the stand-in compiler:\n{traceback.format_exc()}")
        exit_code = _EXIT_STANDIN_DEFECT
    record.finish(exit_code)
    return exit_code


def _run(tool: str, argv: Sequence[str], layout: Layout, record: InvocationRecord) -> int:
    profile = layout.profile()
    _print_preliminaries(tool, profile)
    if any(argument in HELP_ARGUMENTS for argument in argv):
        _print_help(tool, profile)
        return 0
    if list(argv) == [LIST_OPERATORS_ARGUMENT]:
        _write_operator_list(record)
        return 0
    arguments = parse_arguments(argv, profile)
    for option in arguments.not_modelled:
        sys.stderr.write(f"WARNING: the stand-in's program does not depend on {option}\n")
    folder = arguments.required_path("aic-binary-dir")

    # Imports onnx: half a second that wrong arguments do not have to wait for.
    from .compilation import Compilation, compile_program, prepare_folder

    prepare_folder(folder)
    fault = active_faults().compile
    exit_code = _misbehave(fault, record)
    if exit_code is not None:
        return exit_code
    compile_program(
        Compilation(
            arguments=arguments,
            profile=profile,
            fault=fault,
            note_read=record.read,
            note_written=record.wrote,
        )
    )
    return fault.exit_code or 0


def _misbehave(fault: ProcessFault, record: InvocationRecord) -> int | None:
    time.sleep(fault.sleep_seconds)
    if fault.kill:
        record.finish(-signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.stderr is not None:
        sys.stderr.write(fault.stderr)
    if fault.truncate_output is not None:
        return None
    if fault.exit_code is None and fault.stderr is not None:
        return EXIT_FAILURE
    return fault.exit_code


def _print_preliminaries(tool: str, profile: Profile) -> None:
    if tool != profile.compilers[0]:
        sys.stderr.write(f"WARNING: {tool} is deprecated, use {profile.compilers[0]}\n")
    if noise_is_on():
        sys.stderr.write("WARNING: stand-in noise, nothing is wrong\n")
        sys.stdout.write("[progress] reading model\n[progress] compiling\n")
        sys.stdout.flush()


def _print_help(tool: str, profile: Profile) -> None:
    lines = [f"Stand-in for {tool} {profile.version}; not a Qualcomm tool.", "", "Options:"]
    lines += [f"  -{option.name}  <{option.kind.value}>" for option in options_of(profile).values()]
    sys.stdout.write("\n".join(lines) + "\n")


def _write_operator_list(record: InvocationRecord) -> None:
    import onnx.defs

    names = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    path = Path(_OPERATOR_LIST_FILE)
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    record.wrote(path)
