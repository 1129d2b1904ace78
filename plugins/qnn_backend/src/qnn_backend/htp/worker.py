"""The child process of `qnn_backend.htp.child`: runs one job and writes what came of it."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from qeff_framework.plugin_api import QEFFError
from qnn_backend.htp import jobs


def main(request: Path, answer: Path) -> int:
    """Runs the job of `request`; the exit code is 0 when there is a result and 1 when there is an error."""
    content = json.loads(request.read_text(encoding="utf-8"))
    try:
        result = jobs.JOBS[content["job"]](**content["arguments"])
    except QEFFError as error:
        answer.write_text(json.dumps({"error": str(error)}), encoding="utf-8")
        return 1
    except Exception as error:  # noqa: BLE001 -- whatever the native libraries raise ends here, and is told to the parent
        traceback.print_exc()
        answer.write_text(json.dumps({"error": f"{content['job']} failed: {error}"}), encoding="utf-8")
        return 1
    answer.write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
