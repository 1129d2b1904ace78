from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.processes import tiny_artifact


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def artifact(home: Path) -> Path:
    return tiny_artifact(home)
