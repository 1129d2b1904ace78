"""Work in fresh Python processes, which find the modules that this one finds."""

from __future__ import annotations

import base64
import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.testing.checks import BrokenPromiseError

if TYPE_CHECKING:
    from qeff_framework.plugin_api import Backend

#: Seconds after which a child is given up.
TIME_LIMIT: Final = 120
#: What the line with a result begins with; others are what libraries print.
_RESULT: Final = "qeff-conformance-result:"


def run_python(code: str, *, what: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None) -> Any:
    """Runs `code`, which calls ``result(value)`` with a JSON value, and returns it, with all other output as ``_output``.

    Raises:
        BrokenPromiseError: the process fails, crashes or does not end; `what` says what it was to do.
    """
    prelude = f"import json, sys\ndef result(value): print({_RESULT!r} + json.dumps(value), flush=True)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(variables or {})}
    try:
        done = subprocess.run(
            [sys.executable, "-c", prelude + code],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenPromiseError(f"{what} in a fresh process does not end within {TIME_LIMIT} s") from error
    lines = done.stdout.splitlines()
    found = [line.removeprefix(_RESULT) for line in lines if line.startswith(_RESULT)]
    if done.returncode or not found:
        told = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        raise BrokenPromiseError(f"{what} in a fresh process ended with exit code {done.returncode}: {told}")
    printed = [line for line in lines if not line.startswith(_RESULT)]
    return {**json.loads(found[-1]), "_output": "\n".join([*printed, done.stderr.strip()]).strip()}


def descriptor_code(backend: Backend) -> str:
    """Python statements that make ``backend``, the descriptor."""
    module, name = type(backend).__module__, type(backend).__qualname__
    return f"import importlib\nbackend = getattr(importlib.import_module({module!r}), {name!r})()\n"


def call_in_child(
    function: str, *arguments: Any, what: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> Any:
    """Calls ``"module:function"`` with pickled `arguments` in a fresh process, as ``spawn`` does; the result is a JSON object."""
    payload = base64.b64encode(pickle.dumps((function, arguments))).decode()
    code = f"from qeff_framework.testing.children import answer\nresult(answer({payload!r}))\n"
    return run_python(code, what=what, cwd=cwd, variables=variables)


def answer(payload: str) -> Any:
    """What a function returns in the child process."""
    path, arguments = pickle.loads(base64.b64decode(payload))  # noqa: S301 -- written by the parent process
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)
