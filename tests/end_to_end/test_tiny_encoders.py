"""Poolings and several lengths in one compile: each text gets what Transformers computes for it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModel
from tests.tiny_models import tiny_encoder

pytestmark = pytest.mark.usefixtures("session_store")

#: Both fill their program, or leave most of it empty, or a little.
ROWS = [[5 + 3 * place for place in range(length)] for length in (32, 2, 27, 33)]
LENGTHS = [32, 128]


def norm_weighted(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Tokens weigh as much as they are long."""
    weights = hidden.norm(dim=-1, keepdim=True) * mask.unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


EXPECTED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # The results lie side by side: one export for all of them.
    "mean+cls+max+lasttoken": lambda tokens: torch.cat([tokens.mean(dim=0), tokens[0], tokens.amax(dim=0), tokens[-1]]),
    "callable": lambda tokens: norm_weighted(tokens[None], torch.ones((1, len(tokens))))[0],
    "none": lambda tokens: tokens,
}


@pytest.fixture(scope="module")
def hidden() -> list[torch.Tensor]:
    """The last hidden state ``[S, H]`` of each row alone."""
    module = tiny_encoder("bert")
    with torch.no_grad():
        return [module(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS]


@pytest.mark.parametrize("pooling", EXPECTED)
def test_each_pooling_and_length_equals_eager(pooling: str, hidden: list[torch.Tensor]) -> None:
    given: Any = {"callable": norm_weighted, "none": None}.get(pooling, pooling.split("+"))
    expected = [EXPECTED[pooling](tokens).numpy() for tokens in hidden]

    model = QEFFAutoModel(tiny_encoder("bert"), pooling=given)
    compiled = model.compile(backend="ort_sim", seq_len=LENGTHS, batch_size=2, num_cores=2)

    assert [item.dims["seq_len"] for item in compiled.specializations] == LENGTHS
    together = model.generate({"input_ids": ROWS})
    for place, (row, want) in enumerate(zip(ROWS, expected, strict=True)):
        got = together[place] if given is not None else together[place][: len(row)]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
        # Alone, a row of up to 32 tokens runs in the shorter program.
        np.testing.assert_allclose(model.generate({"input_ids": [row]})[0], want, rtol=1e-3, atol=1e-4)
