"""One tiny checkpoint for all flows, and the backend that they run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from QEfficient._compat import notices
from tests.checkpoints import save_tiny_checkpoint
from tests.tiny_models import tiny_causal_lm


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model whose texts end at the limits alone."""
    module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("qefficient") / "model", module=module))


@pytest.fixture(autouse=True)
def _on_the_cpu(session_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEFF_COMPAT_BACKEND", "ort_sim")
    for variable in ("QEFF_COMPAT_SIMULATE", "QEFF_MODELS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(notices, "_said", set())
