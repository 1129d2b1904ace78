"""Child processes: argument lists and no shell, time limits, output that goes to files as it comes, no process left behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from qeff_framework.parallel import check_stopped

#: The wait for a process looks at it this often at least; it starts with short pauses, for processes that end at once.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
#: What ends a command from outside; where Python handles it, the handler may raise an exception.
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
#: A shell returns 128 + N for a child that signal N has ended.
_SHELL_SIGNALS = 128
#: Signals that a process gets for its own faults. Others in a shell's exit code may be an exit code of the tool's own.
_FAULTS = ("SIGILL", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS", "SIGTRAP")
#: Windows: exit codes from here on are NTSTATUS values of unhandled exceptions.
_FIRST_NATIVE_CODE = 0xC0000000
_NATIVE_CODES = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC0000017: "out of memory",
    0xC00000FD: "stack overflow",
    0xC0000135: "a library was not found",
    0xC0000374: "heap corruption",
    0xC0000409: "abort",
}


class Outcome(StrEnum):
    """How a process has ended."""

    SUCCESS = "success"
    #: The tool said no: an exit code of its own.
    REFUSED = "refused"
    #: Its own fault: a signal such as SIGSEGV, or a native exception of Windows.
    CRASHED = "crashed"
    #: A signal from outside; SIGKILL comes most often from the kernel, for lack of memory.
    KILLED = "killed"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has ended."""

    #: Negative after a signal.
    exit_code: int
    timed_out: bool
    #: What it printed on both streams.
    output: str = ""

    @property
    def outcome(self) -> Outcome:
        """What kind of end it was."""
        if self.timed_out:
            return Outcome.TIMED_OUT
        if self.exit_code == 0:
            return Outcome.SUCCESS
        if self._signal:
            return Outcome.CRASHED if self._signal in _FAULTS else Outcome.KILLED
        return Outcome.CRASHED if self.exit_code >= _FIRST_NATIVE_CODE else Outcome.REFUSED

    @property
    def description(self) -> str:
        """The end in words, as the second part of a sentence: ``"crashed with signal SIGSEGV"``."""
        if self.outcome is Outcome.TIMED_OUT:
            return "did not end in time and was stopped"
        if self.outcome is Outcome.KILLED:
            likely = ", probably because the host ran out of memory" if self._signal == "SIGKILL" else ""
            return f"was killed by signal {self._signal}{likely}"
        if self._signal:
            return f"crashed with signal {self._signal}"
        if self.outcome is Outcome.CRASHED:
            meaning = _NATIVE_CODES.get(self.exit_code)
            return f"crashed with exit code 0x{self.exit_code:08X}" + (f" ({meaning})" if meaning else "")
        return f"ended with exit code {self.exit_code}"

    @property
    def _signal(self) -> str:
        """Name of the signal that ended it, or ``""``."""
        if self.exit_code < 0:
            return _signal_name(-self.exit_code)
        name = _signal_name(self.exit_code - _SHELL_SIGNALS) if self.exit_code > _SHELL_SIGNALS else ""
        return name if name in ("SIGKILL", *_FAULTS) else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Windows has no SIGKILL, and real-time signals have no names.
        return "SIGKILL" if number == 9 else str(number)


def run_process(
    argv: Sequence[str],
    directory: Path,
    *,
    log: Path,
    time_limit_seconds: float,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Ended:
    """Runs a program and appends its command line, its output and its exit code to a log file.

    The process gets a group of its own. Whatever is left of the group is killed when the process ends, when the time is up, and
    when this process is interrupted. It also gets a directory of its own for temporary files (``TMPDIR``), which is removed then.

    Args:
        argv: the program and its arguments.
        directory: working directory of the process.
        log: file that takes both output streams; the process writes to it directly.
        time_limit_seconds: when the process is stopped.
        environment: replaces this process's variables.
        on_line: called with each line that the process has printed, soon after it was printed.

    Raises:
        OSError: the program cannot be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="qeff-tool-", ignore_cleanup_errors=True) as temporary,
        log.open("ab") as sink,
    ):
        sink.write(f"$ {shlex.join(argv)}\n".encode("utf-8", "surrogateescape"))
        sink.flush()
        start = sink.tell()
        follower = _Follower(log, start, on_line) if on_line is not None else None
        exit_code, timed_out = run_to_end(
            argv,
            directory=directory,
            stdout=sink,
            stderr=subprocess.STDOUT,
            time_limit_seconds=time_limit_seconds,
            environment={**(os.environ if environment is None else environment), **_temporary(temporary)},
            on_wait=follower.read if follower is not None else None,
        )
        if follower is not None:
            follower.finish()
        output = log.read_bytes()[start:].decode("utf-8", errors="replace")
        sink.write(f"[exit code {exit_code}]\n".encode())
    return Ended(exit_code=exit_code, timed_out=timed_out, output=output)


def _temporary(directory: str) -> dict[str, str]:
    """Variables that make programs put their temporary files into `directory`."""
    return dict.fromkeys(("TMPDIR", "TEMP", "TMP"), directory)


class _Follower:
    """Reads a file that grows, and passes on its lines."""

    def __init__(self, file: Path, start: int, on_line: Callable[[str], None]) -> None:
        self._file, self._position, self._on_line = file, start, on_line

    def read(self) -> None:
        """Passes on the lines that are complete."""
        content = self._rest()
        self._pass_on(content[: content.rfind(b"\n") + 1])

    def finish(self) -> None:
        """Passes on everything; the last line may have no end."""
        self._pass_on(self._rest())

    def _rest(self) -> bytes:
        with self._file.open("rb") as stream:
            stream.seek(self._position)
            return stream.read()

    def _pass_on(self, content: bytes) -> None:
        self._position += len(content)
        for line in content.decode("utf-8", errors="replace").splitlines():
            self._on_line(line)


def run_to_end(
    argv: Sequence[str],
    *,
    stdout: IO[bytes],
    stderr: IO[bytes] | int,
    time_limit_seconds: float,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    on_wait: Callable[[], None] | None = None,
) -> tuple[int, bool]:
    """Exit code, and whether the time was up. The streams are files: a pipe would stay open while any helper process lives.

    The process is ended where `check_stopped` raises.
    """
    deadline = time.monotonic() + time_limit_seconds
    timed_out, pause = False, _SHORTEST_PAUSE
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interruptions_held():
            process = subprocess.Popen(
                list(argv),
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        while not _has_ended(process):
            left = deadline - time.monotonic()
            if left <= 0:
                timed_out = True
                break
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
            if on_wait is not None:
                on_wait()
            check_stopped()
    finally:
        if process is not None:
            _kill_group(process)
    return process.returncode, timed_out


@contextlib.contextmanager
def _interruptions_held() -> Iterator[None]:
    """Delivers at the end the signals that arrive inside and whose handlers may raise: `Popen` loses a process then.

    Python runs handlers in the main thread alone, so nothing is held in another one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_deliver, arrived)
        for number in _INTERRUPTIONS:
            handler = signal.getsignal(number)
            # Without a function of Python's, the signal ends this process at once or is ignored.
            if callable(handler):
                stack.callback(signal.signal, number, handler)
                signal.signal(number, lambda number, _: arrived.append(number))
        yield


def _deliver(arrived: Sequence[int]) -> None:
    for number in arrived:
        signal.raise_signal(number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Leaves an ended process as a zombie where that is possible, so that its id, which is the group's, cannot be reused."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process and of its helpers."""
    if process.returncode is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
