"""What the tests of the backend for HTP share."""

from __future__ import annotations

import pytest

from qeff_framework.toolchains import jobs
from tests.warm_python import interpreter


@pytest.fixture(autouse=True)
def _forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's jobs are forks; `test_our_backends` and the documents run them in processes of Python's own."""
    monkeypatch.setattr(jobs, "COMMAND", (str(interpreter()), *jobs.COMMAND[1:]))
