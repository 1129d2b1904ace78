"""A dozen structurally different architectures, each token-exact through the whole pipeline; `qeff coverage` checks all."""

from __future__ import annotations

import pytest

from qeff_framework.coverage.families import KINDS
from qeff_framework.coverage.parity import check_causal_lm
from qeff_framework.coverage.tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("store_root"),
]


#: Those whose tiny configuration has four layers of one kind, of which two will do, and what their number is called.
ALIKE = {
    "bert": "num_hidden_layers",
    "bloom": "n_layer",
    "falcon": "num_hidden_layers",
    "git": "num_hidden_layers",
    "gptj": "n_layer",
    "mamba": "num_hidden_layers",
    "opt": "num_hidden_layers",
}
#: Kinds that tests/end_to_end/test_tiny_models.py and, the third one, test_parity.py compare in the same way.
ELSEWHERE = {"windows", "sinks and experts", "one key head"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ELSEWHERE])
def test_tokens_are_those_of_transformers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qeff_framework.export")
    model_type = KINDS[kind]
    changes = {ALIKE[model_type]: 2} if model_type in ALIKE else {}
    facts = check_causal_lm(tiny_model(model_type, "causal-lm", changes=changes), "ort_sim", {})
    assert facts["logit_error"] < 0.01
    # Layers that are alike are traced once.
    assert "every layer is traced" not in caplog.text
