"""The compiler's process: no shell, a time limit, everything that it prints goes into a log file as it comes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_FILE = "compile.log"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has ended. `exit_code` is negative after a signal."""

    exit_code: int
    timed_out: bool
    #: What it printed on both streams.
    output: str


def run_compiler(
    argv: Sequence[str], directory: Path, *, timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> Ended:
    """Runs the compiler in `directory` and appends command and output to ``compile.log`` there.

    `environment` replaces this process's variables where it is given.
    The process and its children end with the time limit, and when this process is interrupted. Raises `OSError` when it cannot
    be started.
    """
    with (directory / LOG_FILE).open("ab") as log:
        log.write(f"$ {' '.join(argv)}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            list(argv),
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A group of its own, so that helper processes of the compiler can be ended with it.
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
        log.seek(0, os.SEEK_END)
        log.write(f"[exit code {process.returncode}]\n".encode())
    output = (directory / LOG_FILE).read_bytes()[start:].decode("utf-8", errors="replace")
    return Ended(exit_code=process.returncode, timed_out=timed_out, output=output.rpartition("[exit code ")[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
