"""Entry point of the stand-in `qairt-converter`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ....qaic.qaic_standin.invocation_log import InvocationRecord
from ..errors import ToolError
from ..faults import ProcessFault
from ..layout import Layout, installed
from ..running import run_tool


def main(argv: Sequence[str], layout: Layout | None = None) -> int:
    """Run the converter, log the run, return the exit code."""
    tree = layout or installed()

    def work(record: InvocationRecord, fault: ProcessFault) -> None:
        # The real tool is a Python script whose packages lie in the SDK.
        if str(tree.python_folder) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            raise ToolError("ModuleNotFoundError: No module named 'qti'")
        from .arguments import parse_arguments

        values = parse_arguments(argv)
        if values.dry_run is not None:
            sys.stdout.write("dry run: nothing is converted\n")
            return
        from .conversion import convert

        path = convert(values, tree.profile(), record)
        if fault.truncate_output is not None:
            path.write_bytes(path.read_bytes()[: fault.truncate_output])

    return run_tool("converter", "qairt-converter", argv, tree, work)
