"""What the tests of the backend for HTP share."""

from __future__ import annotations

import pytest

from qeff_framework.toolchains import processes
from tests.forked_compilers import forking


@pytest.fixture(autouse=True)
def _forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's jobs are forks; `test_our_backends` and the documents run them in processes of Python's own."""
    monkeypatch.setattr(processes, "run_to_end", forking(processes.run_to_end))
