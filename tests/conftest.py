"""What several parts of the suite share: an artifact store of its own, and small real checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest listens at every level, and torch then formats megabytes of traces for each export.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="session")
def session_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of the whole session: what one test has exported, another one finds."""
    root = tmp_path_factory.mktemp("qeff-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(root))
        for variable in ("QEFF_BACKEND", "QEFF_BACKENDS", "QEFF_DISABLE_BACKENDS", "QEFF_EXTENSIONS"):
            patch.delenv(variable, raising=False)
        yield root


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store for one test."""
    root = tmp_path / "qeff-home"
    monkeypatch.setenv("QEFF_HOME", str(root))
    return root
