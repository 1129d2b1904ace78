"""Two thousand malformed requests: `benchmarks/http_faults.py` finds no server error and no leak."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.serving.processes import run, tiny_artifact

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("schemathesis") is None, reason="Schemathesis is not installed: `make scale` runs this test"
    ),
]


def test_no_malformed_request_is_a_server_error(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path)
    done = run(tmp_path, str(BENCHMARKS / "http_faults.py"), str(artifact), check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
