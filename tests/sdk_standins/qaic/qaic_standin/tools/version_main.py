"""Entry point of the stand-in `qaic-version-util`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from ..invocation_log import InvocationRecord
from ..layout import Layout, installed

_PACKAGES = {"--apps": "apps", "--platform": "platform"}


def main(tool: str, argv: Sequence[str]) -> int:
    """Print the version of each package asked for, or of both.

    Returns:
        The exit code: 1 when an option is unknown or a version file is missing.
    """
    layout = installed()
    record = InvocationRecord(layout.log_file, tool, argv)
    exit_code = _run(argv, layout, record)
    record.finish(exit_code)
    return exit_code


def _run(argv: Sequence[str], layout: Layout, record: InvocationRecord) -> int:
    unknown = [argument for argument in argv if argument not in _PACKAGES]
    if unknown:
        sys.stderr.write(f"Unknown option {unknown[0]}\n")
        return 1
    for argument in argv or _PACKAGES:
        path = layout.version_file(_PACKAGES[argument])
        if not path.exists():
            sys.stderr.write(f"Cannot read {path}\n")
            return 1
        record.read(path)
        # The stand-in's own file: there is no untrusted XML here.
        build = ET.parse(path).getroot().find("ci_build")
        if build is not None:
            parts = [build.findtext(tag, "") for tag in ("base_name", "base_version", "build_id")]
            sys.stdout.write(".".join(parts) + "\n")
    return 0
