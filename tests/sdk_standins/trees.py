"""What the trees of both stand-in SDKs are made of: packages that are copied into them, and executables."""

from __future__ import annotations

import compileall
import functools
import shutil
from pathlib import Path

from tests import warm_python

# The longest interpreter line that Linux kernels before 5.1 accept.
_MAX_SHEBANG = 127


def copy_package(source: Path, target: Path) -> None:
    """Copies a package with its byte code, which goes by the times of the sources: not each tree compiles it anew."""
    _compile(source)
    shutil.copytree(source, target)


@functools.cache
def _compile(package: Path) -> None:
    compileall.compile_dir(package, quiet=2)


def interpreter_line(interpreter: Path | None) -> str:
    """First line of an executable; without an interpreter, that of `tests.warm_python`."""
    # Isolated mode: neither PYTHONPATH nor the current folder may bring in the tests' modules.
    python = str(interpreter or warm_python.interpreter())
    line = f"#!{python} -I"
    if " " not in python and len(line) <= _MAX_SHEBANG:
        return line
    # The shell reads the first two lines as a command, Python reads them as a string.
    return f"#!/bin/sh\n'''exec' \"{python}\" -I \"$0\" \"$@\"\n' '''"
