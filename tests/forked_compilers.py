"""What a toolchain runs with this Python is a fork: see `tests.warm_python`.

A plugin of pytest as well (``-p tests.forked_compilers``), for environments of their own. Whatever else starts a process there, as
the kit's checks of what is imported, starts one of Python's own. Logs name Python.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tests.warm_python import interpreter


def pytest_configure() -> None:
    from qeff_framework.toolchains import processes

    processes.run_to_end = forking(processes.run_to_end)


def forking(run_to_end: Any) -> Any:
    """A ``qeff_framework.toolchains.processes.run_to_end`` that forks where it would start Python."""

    def run(argv: Sequence[str], **keywords: Any) -> Any:
        return run_to_end([str(interpreter()), *argv[1:]] if argv[0] == sys.executable else argv, **keywords)

    return run
