"""A stand-in SDK in place of ``/opt/qti-aic``, and one small export that the tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework.contracts import CompiledModel, ExportedModel
from qeff_framework.export.portable import export_portable
from tests.plugins.qaic_backend.sessions import compile_program
from tests.sdk_standins.qaic import StandinSdk, install_standin
from tests.tiny_models import tiny_causal_lm


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandinSdk]]:
    """Installs a stand-in SDK and points the backend at it. The test fails when a device is not given back."""
    installed: list[StandinSdk] = []
    # Logs of failed compiles are kept there.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def install(**keywords: Any) -> StandinSdk:
        sdk = install_standin(tmp_path / f"sdk{len(installed)}", **keywords)
        installed.append(sdk)
        monkeypatch.setenv(ROOT_VARIABLE, str(sdk.root))
        imports = sdk.clean_imports()
        imports.__enter__()
        leaving.append(imports)
        return sdk

    leaving: list[Any] = []
    yield install
    for imports in reversed(leaving):
        imports.__exit__(None, None, None)
    for sdk in installed:
        sdk.assert_released()


@pytest.fixture
def no_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root where no SDK lies."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nowhere"))
    return tmp_path / "nowhere"


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ExportedModel]:
    """Exports of tiny models with extra inputs, each made once."""
    made: dict[tuple[str, ...], ExportedModel] = {}

    def export(model_type: str, *extra_inputs: str) -> ExportedModel:
        known = (model_type, *extra_inputs)
        if known not in made:
            directory = tmp_path_factory.mktemp("-".join(known))
            module, _ = tiny_causal_lm(model_type)
            made[known] = export_portable(module, task="causal-lm", output_dir=directory, extra_inputs=extra_inputs)
        return made[known]

    return export


@pytest.fixture(scope="session")
def llama_export(exports: Callable[..., ExportedModel]) -> ExportedModel:
    return exports("llama")


@pytest.fixture(scope="session")
def llama_program(llama_export: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    """`llama_export` compiled as `compile_program` does without options. Tests open it and write nothing into it."""
    folder = tmp_path_factory.mktemp("llama-program")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(install_standin(folder / "sdk").root))
        return compile_program(llama_export, folder / "program")
