"""Exports that several tests look at are made once."""

from __future__ import annotations

import pytest

from qeff_framework.export.portable import export_portable
from tests.tiny_models import tiny_causal_lm


@pytest.fixture(scope="session")
def llama():
    model, _ = tiny_causal_lm("llama")
    return model


@pytest.fixture(scope="session")
def llama_export(llama, tmp_path_factory):
    return export_portable(llama, task="causal-lm", output_dir=tmp_path_factory.mktemp("llama"))
