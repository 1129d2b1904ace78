"""Native code runs in a child process: a crash or a hang of it must not take the caller along.

A job is a function of `qnn_backend.htp.jobs` with JSON arguments. The child writes its result, or what is wrong, into a file; all
that libraries print goes into the log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_framework.plugin_api import CompileError, QEFFError

#: Runs one job; its arguments are the file of the job and the file of the result.
COMMAND = (sys.executable, "-m", "qnn_backend.htp.worker")
LOG_FILE = "compile.log"

_POLL_SECONDS = 0.05
_LAST_LINES = 3


def run_job(job: str, arguments: Mapping[str, Any], folder: Path, *, deadline: float) -> dict[str, Any]:
    """Runs one job and returns its result.

    Args:
        job: name of a function of `qnn_backend.htp.jobs`.
        arguments: its keyword arguments, as JSON.
        folder: for the log, to which the output is appended, and for the files of the job.
        deadline: the value of `time.monotonic` at which the child is ended.

    Raises:
        CompileError: the job failed, crashed or did not end in time; the message names a copy of the log.
    """
    request, answer = folder / f"{job}.job.json", folder / f"{job}.result.json"
    answer.unlink(missing_ok=True)
    request.write_text(json.dumps({"job": job, "arguments": arguments}), encoding="utf-8")
    with (folder / LOG_FILE).open("ab") as log:
        log.write(f"== {job}\n".encode())
        log.flush()
        start = log.tell()
        exit_code = _run([*COMMAND, str(request), str(answer)], log.fileno(), deadline)
    output = (folder / LOG_FILE).read_bytes()[start:].decode("utf-8", errors="replace")
    result: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        result = json.loads(answer.read_text(encoding="utf-8"))
    request.unlink()
    answer.unlink(missing_ok=True)
    if exit_code is None:
        raise failed(folder, f"{job} did not end within the time limit (compile_timeout_minutes) and was stopped")
    if "error" in result:
        raise failed(folder, str(result["error"]))
    if exit_code != 0 or not result:
        raise failed(folder, f"{job} {_ending(exit_code)}{_last_words(output)}")
    return result


def failed(folder: Path, reason: str) -> CompileError:
    """The framework removes the directory of a failed compile; the log is kept where the message says."""
    log = folder / LOG_FILE
    if not log.is_file():
        return CompileError(f"qnn: {reason}")
    with tempfile.NamedTemporaryFile(prefix="qeff-qnn-compile-", suffix=".log", delete=False) as kept:
        kept.write(log.read_bytes())
    return CompileError(f"qnn: {reason}. Full output: {kept.name}")


def _run(argv: list[str], log: int, deadline: float) -> int | None:
    """The exit code, negative after a signal; `None` when the time was up. No child is left behind."""
    try:
        # A group of its own, so that what the child starts can be ended with it.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise QEFFError(f"qnn: cannot start {argv[0]}: {error}") from error
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        return process.returncode
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _ending(exit_code: int) -> str:
    if exit_code == -9:  # SIGKILL, which not every platform has a name for
        return "was killed, probably because the machine ran out of memory"
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = str(-exit_code)
        return f"crashed: the compiler's process was ended by signal {name}"
    return f"ended with exit code {exit_code} and without a result"


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and "LIBNATIVE" not in line]
    return f"; its last words: {' | '.join(lines[-_LAST_LINES:])}" if lines else ""
