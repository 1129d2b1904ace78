"""What went wrong in a QAIRT tool. The Cloud AI compiler works inside the context generator: its messages are read there."""

from __future__ import annotations

import re

from qnn_backend.aic.qaic import shared
from qnn_backend.aic.sdk import PYTHON_VARIABLE

_ADVICE = (
    (
        r"No module named|ModuleNotFoundError|ImportError",
        f"the converter is a Python script: let {PYTHON_VARIABLE} name an interpreter with the packages that the SDK asks for",
    ),
    (
        r"error while loading shared libraries|cannot open shared object|GLIBC",
        "a library that the SDK needs is missing on this host: see the SDK's list of system requirements",
    ),
    (
        r"Unknown Key",
        "this SDK does not know the option: take it out of 'qnn_compilation_backend' in the qnn_config file",
    ),
    (
        r"unrecognized (?:arguments|option)|invalid choice",
        "this SDK does not know the argument: see the extensions in the qnn_config file",
    ),
)
#: A line that announces an error whose text follows, behind the tool's own prefix.
_BARE_HEADER = re.compile(r"^\W*(?:ERROR\W*)?QAIC_ERROR:?\s*$")


def explain(tool: str, exit_code: int, output: str) -> str:
    """How the tool ended, its own first useful line, and what to do where that is known."""
    useful = "\n".join(line for line in output.splitlines() if not _BARE_HEADER.match(line))
    text = f"{tool}: {shared().explain(exit_code, useful)}"
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, output)), None)
    return f"{text}. {advice[0].upper()}{advice[1:]}" if advice else text
