"""all-MiniLM-L6-v2, real weights, in the HTP simulator: three short sentences of those that `minilm_on_htp` embeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.qnn_backend.htp.minilm_on_htp import LEAST, SENTENCES, embed
from tests.plugins.qnn_backend.htp.simulator import needs_simulator

pytestmark = [needs_simulator, pytest.mark.usefixtures("session_store")]


@pytest.mark.parametrize("precision", LEAST)
def test_embeddings_are_those_of_transformers(precision: str, tmp_path: Path) -> None:
    short = sorted(SENTENCES, key=len)[:3]
    assert embed(precision, short, seq_len=16, calibration=tmp_path / "prompts.txt").min() >= LEAST[precision]
