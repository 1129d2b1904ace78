"""The child process of `qeff_framework.toolchains.jobs`: calls one function and writes what it returned."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from qeff_framework.errors import QEFFError


def main(request: Path, answer: Path) -> int:
    """Calls the function of `request`; the exit code is 0 when there is a result and 1 when there is an error."""
    content = json.loads(request.read_text(encoding="utf-8"))
    module, _, name = content["function"].rpartition(":")
    try:
        outcome: dict[str, Any] = {"result": getattr(importlib.import_module(module), name)(**content["arguments"])}
    except QEFFError as error:
        outcome = {"error": {"type": type(error).__name__, "message": str(error)}}
    except Exception as error:  # noqa: BLE001 -- whatever the native libraries raise ends here, and is told to the parent
        traceback.print_exc()
        outcome = {"error": {"type": "CompileError", "message": f"{name} failed: {type(error).__name__}: {error}"}}
    answer.write_text(json.dumps(outcome), encoding="utf-8")
    return 1 if "error" in outcome else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
