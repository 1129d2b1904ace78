"""Questions to this machine that native code answers, in a process of its own: a crash or a hang is an answer as well."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from qeff_framework.toolchains.processes import Ended, Outcome, run_to_end


class ProbeError(Exception):
    """There was no answer. The message says why, as a whole sentence without a full stop."""


def ask_python(code: str, *arguments: str, subject: str, time_limit_seconds: float = 30.0) -> dict[str, Any]:
    """Runs Python code with this interpreter and returns the JSON object that it printed last.

    Example::

        CODE = "import json, acme; print(json.dumps({'version': acme.__version__}))"
        ask_python(CODE, subject="importing acme")["version"]

    Args:
        code: the program; libraries may print before the answer.
        arguments: its ``sys.argv[1:]``.
        subject: what the code does, for the message: ``"importing acme"``.
        time_limit_seconds: when it is stopped.

    Raises:
        ProbeError: the code failed, crashed, did not end in time, or printed no JSON object.
    """
    # -P: a file of the working directory must not hide a module.
    output = _ask([sys.executable, "-P", "-c", code, *arguments], subject, time_limit_seconds, None)
    *_, last_line = "", *output.strip().splitlines()
    try:
        answer = json.loads(last_line)
    except ValueError as error:
        raise ProbeError(f"{subject} gave no answer: {error}") from error
    if not isinstance(answer, dict):
        raise ProbeError(f"{subject} gave no answer: {last_line!r} is not a JSON object")
    return answer


def ask_command(
    argv: Sequence[str],
    *,
    subject: str | None = None,
    time_limit_seconds: float = 10.0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a program and returns what it printed on its standard output.

    Args:
        argv: the program and its arguments.
        subject: what is asked, for the message; by default the command line.
        time_limit_seconds: when it is stopped.
        environment: replaces this process's variables.

    Raises:
        ProbeError: the program cannot be started, failed, crashed or did not end in time.
    """
    return _ask(argv, subject or " ".join(argv), time_limit_seconds, environment)


def _ask(argv: Sequence[str], subject: str, time_limit_seconds: float, environment: Mapping[str, str] | None) -> str:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            exit_code, timed_out = run_to_end(
                argv, stdout=stdout, stderr=stderr, time_limit_seconds=time_limit_seconds, environment=environment
            )
        except OSError as error:
            raise ProbeError(f"{argv[0]} cannot be run: {error}") from error
        ended = Ended(exit_code=exit_code, timed_out=timed_out)
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", errors="replace"))
    if ended.outcome is Outcome.SUCCESS:
        return texts[0]
    if ended.outcome is Outcome.TIMED_OUT:
        raise ProbeError(f"{subject} did not end within {time_limit_seconds:g} s")
    # The last line of a Python traceback is the error.
    *_, last_line = "", *texts[1].strip().splitlines()
    raise ProbeError(f"{subject} {ended.description}" + (f": {last_line}" if last_line else ""))
