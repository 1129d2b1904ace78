"""Entry point of the stand-in `qnn-context-binary-generator`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ....qaic.qaic_standin.invocation_log import InvocationRecord
from ..errors import EXIT_NOT_LOADED, ToolError
from ..faults import ProcessFault
from ..layout import Layout, installed
from ..running import run_tool
from .arguments import parse_arguments


def main(argv: Sequence[str], layout: Layout | None = None) -> int:
    """Run the generator, log the run, return the exit code."""
    tree = layout or installed()

    def work(record: InvocationRecord, fault: ProcessFault) -> None:
        # The back end needs further libraries of the SDK, which the loader finds through this variable.
        if str(tree.libraries) not in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
            raise ToolError(
                "error while loading shared libraries: libQnnSystem.so: cannot open shared object file", EXIT_NOT_LOADED
            )
        values = parse_arguments(argv)
        from .generation import generate

        generate(values, tree, record, fault)

    return run_tool("generator", "qnn-context-binary-generator", argv, tree, work)
