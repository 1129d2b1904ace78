"""Importing a stranger's module in a process of its own first, where nobody has chosen it: a hang or a crash becomes an error."""

from __future__ import annotations

import json
import sys
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

    An exception is no such reason. A module that this process has imported already is not tried again.
    """
    if module in sys.modules:
        return ""
    from qeff_framework.toolchains.probes import ProbeError, ask_python

    path = json.dumps([str(entry) for entry in sys.path])
    try:
        ask_python(_IMPORT, path, module, subject=f"importing {module}", time_limit_seconds=IMPORT_SECONDS)
    except ProbeError as error:
        return str(error)
    return ""
