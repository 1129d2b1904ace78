"""What went wrong in a QAIRT tool. The Cloud AI compiler works inside the context generator: its messages are read there."""

from __future__ import annotations

import dataclasses

from qeff_framework.toolchains import Diagnosis
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


def diagnosis() -> Diagnosis:
    """What the messages of the QAIRT tools, and of the Cloud AI compiler inside them, mean."""
    compiler: Diagnosis = shared().DIAGNOSIS
    return dataclasses.replace(compiler, advice=(*_ADVICE, *compiler.advice))
