"""A stranger's module that nobody has chosen, imported and asked in a process of its own: a hang or a crash becomes an error."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qeff_framework.contracts import Probe

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


#: The descriptor is found and its answer checked as the registry does it. An exception is no answer.
_PROBE: Final = """
import dataclasses, json, os, sys
sys.path[:] = json.loads(sys.argv[1])
answer = {}
try:
    from qeff_framework.plugin_answers import checked_probe
    from qeff_framework.registry import Registry
    answer["probe"] = dataclasses.asdict(checked_probe(Registry().descriptor(sys.argv[2]), "it"))
except BaseException as error:
    if isinstance(error.__cause__, TimeoutError):
        answer["problem"] = str(error.__cause__)
print("\\n" + json.dumps(answer), flush=True)
os._exit(0)
"""


def probe_elsewhere(name: str) -> Probe | str | None:
    """The answer of an installed backend's ``probe()``, asked in a process of its own.

    Returns:
        The answer; or why there is none, as a clause, where the process died or hung; or `None` for an exception.
    """
    from qeff_framework.contracts import Check, Probe, Status
    from qeff_framework.plugin_answers import PROBE_SECONDS
    from qeff_framework.toolchains.probes import ProbeError, ask_python

    seconds = IMPORT_SECONDS + PROBE_SECONDS
    path = json.dumps([str(place) for place in sys.path])
    try:
        answer = ask_python(_PROBE, path, name, subject="asking it", time_limit_seconds=seconds)
    except ProbeError as error:
        return str(error)
    if "probe" not in answer:
        return answer.get("problem")
    fields = answer["probe"]
    checks = tuple(Check(**{**check, "status": Status(check["status"])}) for check in fields.pop("checks"))
    return Probe(**fields, checks=checks)


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
