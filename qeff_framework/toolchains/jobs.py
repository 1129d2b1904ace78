"""Python functions in a child process, for native libraries that may crash or hang.

Arguments and result are JSON. The child writes its result, or what is wrong, into a file; what libraries print goes into the log.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeff_framework import errors
from qeff_framework.errors import CompileError, QEFFError
from qeff_framework.toolchains.processes import Ended, run_process

#: -P: a file of the working directory must not hide a module. The files with the request and the answer follow.
COMMAND = (sys.executable, "-P", "-m", "qeff_framework.toolchains.worker")

#: Lines of the output that are repeated when a job leaves neither a result nor an error.
_LAST_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has ended: with a result, with an error, or with neither."""

    ended: Ended
    result: dict[str, Any] | None
    error: QEFFError | None

    @property
    def last_words(self) -> str:
        """The last lines that were printed."""
        lines = [line.strip() for line in self.ended.output.splitlines() if line.strip()]
        return " | ".join(lines[-_LAST_LINES:])


def run_job(
    function: str, arguments: Mapping[str, Any], directory: Path, *, log: Path, time_limit_seconds: float
) -> Job:
    """Calls a function in a child process.

    Args:
        function: ``"package.module:function"``; it returns a dictionary.
        arguments: its keyword arguments.
        directory: working directory of the child, and place of the two files with arguments and result.
        log: file that the output is appended to.
        time_limit_seconds: when the child is stopped.
    """
    request, answer = (directory / f"{function.rpartition(':')[2]}.{kind}.json" for kind in ("job", "result"))
    answer.unlink(missing_ok=True)
    request.write_text(json.dumps({"function": function, "arguments": arguments}), encoding="utf-8")
    ended = run_process(
        [*COMMAND, request.name, answer.name], directory, log=log, time_limit_seconds=time_limit_seconds
    )
    content: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(answer.read_text(encoding="utf-8"))
    request.unlink()
    answer.unlink(missing_ok=True)
    return Job(ended=ended, result=content.get("result"), error=_error(content.get("error")))


def _error(content: Mapping[str, str] | None) -> QEFFError | None:
    """The error that the function raised; one that is not of the framework becomes a `CompileError`."""
    if content is None:
        return None
    kind = getattr(errors, content["type"], None)
    is_ours = isinstance(kind, type) and issubclass(kind, QEFFError)
    return kind(content["message"]) if is_ours and kind is not None else CompileError(content["message"])
