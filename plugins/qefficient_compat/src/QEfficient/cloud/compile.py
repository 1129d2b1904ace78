"""``python -m QEfficient.cloud.compile``: a program from a graph that ``QEfficient.cloud.export`` has made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from QEfficient._compat.commands import Command, run
from QEfficient._compat.old_api import compile as compile_graph


def main(**values: Any) -> None:
    """Compiles and prints the path of the artifact, which ``QEfficient.cloud.execute`` takes."""
    print(compile_graph(**values))


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = Command(prog="python -m QEfficient.cloud.compile", description="Compiles an exported graph.")
    parser.flag("onnx_path", required=True, help="the graph, as QEfficient.cloud.export has printed it")
    parser.flag("qpc_path", required=True, help="folder in which the artifact is put, as qpcs")
    parser.flag("custom_io_file_path", help="no effect: --mxint8 sets the format of the cache")
    parser.compiling()
    values = parser.parsed(arguments, options=True)
    return run(lambda: main(**values))


if __name__ == "__main__":
    sys.exit(command())
