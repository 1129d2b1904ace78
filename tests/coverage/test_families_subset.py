"""A dozen structurally different architectures, each token-exact through the whole pipeline."""

from __future__ import annotations

import pytest

from qeff_framework.coverage.families import KINDS
from qeff_framework.coverage.parity import check_parity

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("store_root"),
]


@pytest.mark.parametrize("model_type", KINDS.values(), ids=KINDS)
def test_tokens_are_those_of_transformers(model_type: str) -> None:
    facts = check_parity(model_type, task="causal-lm", backend="ort_sim")
    assert facts["logit_error"] < 0.01
