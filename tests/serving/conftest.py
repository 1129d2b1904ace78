from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.programs import write_artifact


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("served"))
