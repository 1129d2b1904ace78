"""Stand-in QAIRT and QAIC SDKs, and one small export that the tests share."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework.contracts import ExportedModel
from qeff_framework.export.portable import export_portable
from qnn_backend import QnnConstants
from tests.sdk_standins import qaic, qairt
from tests.tiny_models import tiny_causal_lm


@pytest.fixture
def standin_qairt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., qairt.StandinQairt]:
    """Installs a stand-in QAIRT SDK, in a folder with blanks and quotes in its name, and points the backend at it."""
    # Logs of failed compiles are kept there.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in ("PYTHONPATH", "LD_LIBRARY_PATH", "QEFF_QAIRT_PYTHON"):
        monkeypatch.delenv(variable, raising=False)

    def install(**keywords: Any) -> qairt.StandinQairt:
        sdk = qairt.install_standin(tmp_path / f'the "qairt" sdk\'s {len([*tmp_path.glob("the*")])}', **keywords)
        monkeypatch.setenv(QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME, str(sdk.root))
        return sdk

    return install


@pytest.fixture
def standin_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., qaic.StandinSdk]]:
    """Installs a stand-in platform SDK: a runtime and devices, no compiler. No device may be left in use."""
    with contextlib.ExitStack() as stack:

        def install(**keywords: Any) -> qaic.StandinSdk:
            sdk = qaic.install_standin(tmp_path / "platform", without={"compiler"}, **keywords)
            monkeypatch.setenv(ROOT_VARIABLE, str(sdk.root))
            stack.callback(sdk.assert_released)
            stack.enter_context(sdk.clean_imports())
            return sdk

        yield install


@pytest.fixture
def no_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither SDK."""
    monkeypatch.delenv(QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME, raising=False)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nowhere"))


@pytest.fixture(scope="session")
def llama_export(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    module, _ = tiny_causal_lm("llama")
    return export_portable(module, task="causal-lm", output_dir=tmp_path_factory.mktemp("llama-export"))
