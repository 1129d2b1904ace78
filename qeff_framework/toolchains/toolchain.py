"""The native tools of one compilation: they share a working directory, a log and a time limit."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_framework.contracts import CompileRequest
from qeff_framework.errors import BackendUnavailableError, CompileError, QEFFError
from qeff_framework.toolchains.diagnosis import Diagnosis
from qeff_framework.toolchains.jobs import run_job
from qeff_framework.toolchains.processes import Ended, Outcome, run_process

#: Name of the log in the working directory.
LOG_FILE = "compile.log"

_SECONDS_BETWEEN_REPORTS = 5.0
_LONGEST_REPORT = 160
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")


class Toolchain:
    """Runs the tools of one compilation, and keeps their log when one fails.

    Example::

        toolchain = Toolchain(request, name="acme", time_limit_minutes=60, limit_option="compile_timeout_minutes")
        ended = toolchain.run([str(compiler), "-o", "program.bin", "model.onnx"])
        toolchain.check(ended, "acme-compile", request.output_dir / "program.bin", ACME)
    """

    def __init__(
        self,
        request: CompileRequest,
        *,
        name: str,
        time_limit_minutes: float,
        limit_option: str,
        directory: Path | None = None,
    ) -> None:
        """Starts the time limit.

        Args:
            request: what is compiled; its `progress` gets the tools' output, and its `log_dir` the log of a failure.
            name: of the backend, and of the target if it has several, as the messages begin: ``"qnn, target aic"``.
            time_limit_minutes: for all tools together.
            limit_option: option that sets this limit, for the message.
            directory: where the tools run and the log is written; by default the request's `output_dir`.
        """
        self.directory = request.output_dir if directory is None else directory
        self._request, self._name = request, name
        self._minutes, self._option = time_limit_minutes, limit_option
        self._deadline = time.monotonic() + 60.0 * time_limit_minutes

    @property
    def log(self) -> Path:
        """Command lines and output of the tools so far."""
        return self.directory / LOG_FILE

    def run(
        self, argv: Sequence[str], *, tool: str = "", environment: Mapping[str, str] | None = None, hint: str = ""
    ) -> Ended:
        """Runs one tool in the working directory, and reports the latest line of its output every few seconds.

        Args:
            argv: the program and its arguments.
            tool: what runs, for the messages; by default the name of the program's file.
            environment: replaces this process's variables.
            hint: added to the message when the program cannot be started.

        Raises:
            BackendUnavailableError: the program cannot be started.
            CompileError: it did not end within the time limit.
        """
        tool = tool or Path(argv[0]).name
        try:
            ended = run_process(
                argv,
                self.directory,
                log=self.log,
                time_limit_seconds=self._seconds_left,
                environment=environment,
                on_line=_Reporter(tool, self._request).report,
            )
        except OSError as error:
            raise BackendUnavailableError(
                f"{self._name}: {argv[0]} cannot be run: {error}" + (f". {hint}" if hint else "")
            ) from error
        if ended.outcome is Outcome.TIMED_OUT:
            raise self._too_late(tool)
        return ended

    def check(self, ended: Ended, tool: str, result: Path, diagnosis: Diagnosis) -> None:
        """Checks that a tool ended well and left a file with content.

        Args:
            ended: what `run` returned.
            tool: what ran, for the message.
            result: the file.
            diagnosis: what the tool's messages mean.

        Raises:
            CompileError: it did not; with the tool's own reason.
        """
        if ended.outcome is Outcome.SUCCESS and result.is_file() and result.stat().st_size > 0:
            return
        there = ", ".join(sorted(path.name for path in result.parent.glob("*"))) or "nothing"
        raise self.failure(diagnosis.explain(tool, ended, missing=f"{result.name} ({there} is there)"))

    def run_job(self, function: str, arguments: Mapping[str, Any], *, subject: str) -> dict[str, Any]:
        """Calls a Python function in a child process, for native libraries that may crash or hang.

        Args:
            function: ``"package.module:function"``; it returns a dictionary.
            arguments: its keyword arguments; they and the result must be JSON.
            subject: what runs, for the messages: ``"the Acme compiler"``.

        Raises:
            QEFFError: what the function raised, of the same class.
            CompileError: the function raised something else, crashed, or did not end within the time limit.
        """
        job = run_job(function, arguments, self.directory, log=self.log, time_limit_seconds=self._seconds_left)
        if job.ended.outcome is Outcome.TIMED_OUT:
            raise self._too_late(subject)
        if job.error is not None:
            raise self.failure(str(job.error), kind=type(job.error))
        if job.result is None or job.ended.outcome is not Outcome.SUCCESS:
            last = f"; its last words: {job.last_words}" if job.last_words else ""
            raise self.failure(f"{subject} {job.ended.description} without a result{last}")
        return job.result

    def failure(self, reason: str, *, kind: type[QEFFError] = CompileError) -> QEFFError:
        """An error to raise. The framework removes the directory of a failed compile, so the log is copied and named."""
        if not self.log.is_file():
            return kind(f"{self._name}: {reason}")
        model = str(self._request.exported.metadata.get("model_name", "model"))
        kept = keep_log(self.log, self._request.log_dir, f"{self._name} {model}")
        return kind(f"{self._name}: {reason}. Full output: {kept}")

    @property
    def _seconds_left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def _too_late(self, tool: str) -> QEFFError:
        return self.failure(f"{tool} did not end within {self._minutes:g} minutes ({self._option}) and was stopped")


def keep_log(log: Path, directory: Path | None, label: str) -> Path:
    """Copies `log` to a new file in `directory`, or among the temporary files where that cannot be written.

    Args:
        log: the file.
        directory: where the copy goes; it is made if necessary. `None`: among the temporary files.
        label: what the copy is named after, with the time.

    Returns:
        The copy.
    """
    prefix = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}-"
    content = log.read_bytes()
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return _write_new(directory, prefix, content)
        except OSError:
            pass  # A store that cannot be written must not cost the log.
    return _write_new(Path(tempfile.gettempdir()), prefix, content)


def _write_new(directory: Path, prefix: str, content: bytes) -> Path:
    with tempfile.NamedTemporaryFile(prefix=prefix, suffix=".log", dir=directory, delete=False) as kept:
        kept.write(content)
    return Path(kept.name)


class _Reporter:
    """Passes on lines of a tool's output as progress, but not faster than people read."""

    def __init__(self, tool: str, request: CompileRequest) -> None:
        self._tool, self._progress = tool, request.progress
        self._next = time.monotonic() + _SECONDS_BETWEEN_REPORTS

    def report(self, line: str) -> None:
        text = _UNPRINTABLE.sub("", line).strip()
        if text and time.monotonic() >= self._next:
            self._progress(f"{self._tool}: {text[:_LONGEST_REPORT]}")
            self._next = time.monotonic() + _SECONDS_BETWEEN_REPORTS
