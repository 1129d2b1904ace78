from __future__ import annotations

import pytest
import torch

from qeff_framework.export.pooling import resolve_pooling

HIDDEN = torch.randn((2, 4, 3), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("pooling", ["mean", "mean_sqrt_len_tokens", "weightedmean", "max", "cls", "lasttoken"])
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_padding_takes_no_part_whatever_it_holds(pooling, poison):
    pool = resolve_pooling(pooling)
    poisoned = torch.where(MASK.unsqueeze(-1) != 0, HIDDEN, poison)
    assert torch.equal(pool(poisoned, MASK), pool(HIDDEN, MASK))
