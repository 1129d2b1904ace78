"""Importing a stranger's module in a process of its own first, where nobody has chosen it: a hang or a crash becomes an error."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

#: A module that takes longer is taken for one that hangs. Descriptors are imported within a second.
IMPORT_SECONDS = 30.0

#: What the import raises is no answer: the caller's own import raises it as well, with its traceback. The process ends without
#: what libraries do at exit.
_IMPORT: Final = """
import importlib, json, os, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    importlib.import_module(sys.argv[2])
except BaseException:
    pass
print("\\n{}", flush=True)
os._exit(0)
"""


def import_problem(module: str) -> str:
    """Why importing `module` here would hang this process or end it, as a clause; ``""`` if it would not.

    An exception is no such reason. A module is tried once, and not at all when this process has imported it already.
    """
    return "" if module in sys.modules else _tried(module, tuple(map(str, sys.path)))


def try_imports(modules: Iterable[str]) -> None:
    """Tries several modules at the same time, so that `import_problem` knows the answers."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(import_problem, modules))


@functools.cache
def _tried(module: str, path: tuple[str, ...]) -> str:
    from qeff_framework.toolchains.probes import ProbeError, ask_python

    try:
        ask_python(_IMPORT, json.dumps(path), module, subject=f"importing {module}", time_limit_seconds=IMPORT_SECONDS)
    except ProbeError as error:
        return str(error)
    return ""
