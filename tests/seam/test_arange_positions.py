from __future__ import annotations

import pytest
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.arange_positions import PerRow, PositionalArangeMode, PositionalCountMode

POSITIONS = torch.tensor([[3, 4, 5, -1], [0, 1, 2, 3], [7, -1, -1, -1]])
ROWS, TOKENS = POSITIONS.shape
TABLE = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(ROWS, TOKENS, 6, generator=torch.Generator().manual_seed(1))
HEADS = torch.randn(ROWS, 2, TOKENS, 6, generator=torch.Generator().manual_seed(2))


def rotary(places: torch.Tensor) -> torch.Tensor:
    sin, cos = torch.nn.functional.embedding(places, TABLE)[None, None, :, :].chunk(2, dim=-1)
    return HEADS * torch.stack([sin, sin], dim=-1).reshape(1, 1, TOKENS, 6) + torch.cat([cos, cos], dim=-1)


#: What models do with the numbers of their tokens, each for one row and for all rows at once.
USES = {
    "learned positions, expanded": lambda p: TABLE[0] + torch.nn.functional.embedding(p.expand(ROWS, -1) + 2, TABLE),
    "learned positions, unsqueezed": lambda p: HIDDEN + torch.nn.functional.embedding(p.unsqueeze(0) + 2, TABLE),
    "a table without a batch axis": lambda p: HIDDEN + torch.nn.functional.embedding(p, TABLE),
    "a scale per token": lambda p: (
        HEADS.transpose(1, 2) * torch.log1p(torch.floor((p.float() + 1.0) / 4)).view(1, -1, 1, 1)
    ),
    "distances to slots": lambda p: HEADS[:, 0, :, :1] * (p[:, None] - torch.arange(9)[None, :]).abs(),
    "sines and cosines": rotary,
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_each_row_sees_its_own_positions(use):
    with PositionalArangeMode(POSITIONS):
        got = use(torch.arange(TOKENS))
    assert type(got) is torch.Tensor
    for row in range(ROWS):
        wanted = use(POSITIONS[row].clamp(min=0))
        torch.testing.assert_close(got[row], wanted[row])


def test_a_transposition_stays_within_a_row():
    with PositionalArangeMode(POSITIONS):
        turned = torch.arange(TOKENS)[:, None].expand(TOKENS, 2).transpose(0, -1)
    for row in range(ROWS):
        wanted = POSITIONS[row].clamp(min=0)[:, None].expand(TOKENS, 2).transpose(0, -1)
        assert torch.equal(turned.held[row], wanted)


def test_other_counts_stay_what_they_are():
    with PositionalArangeMode(POSITIONS):
        assert torch.equal(torch.arange(9), torch.tensor(range(9)))
        assert torch.equal(torch.arange(2, TOKENS), torch.tensor([2, 3]))
        assert torch.equal(torch.arange(0, TOKENS, 2), torch.tensor([0, 2]))
        assert isinstance(torch.arange(0, TOKENS, dtype=torch.int32), PerRow)
        assert torch.arange(TOKENS, dtype=torch.float32).dtype == torch.float32


def test_what_has_no_meaning_is_refused():
    with PositionalArangeMode(POSITIONS), pytest.raises(UnsupportedModelError, match="token indices"):
        HIDDEN[:, :, 0] + torch.arange(TOKENS)[:, None]


def test_a_running_count_of_tokens_goes_on_where_the_last_step_ended():
    tokens = torch.full((ROWS, TOKENS), 7)
    with PositionalCountMode(POSITIONS):
        counted = torch.cumsum(tokens.ne(1).int(), dim=1)
        assert torch.equal(tokens.ne(1).cumsum(-1), counted)
        assert torch.equal(torch.cumsum(tokens.ne(1), dim=0), tokens.ne(1).cumsum(0)), "along the rows"
        weights = torch.ones(ROWS, TOKENS)
        assert torch.equal(torch.cumsum(weights, dim=1)[0], torch.arange(1.0, TOKENS + 1)), "no count"
    real = POSITIONS >= 0
    assert torch.equal(counted[real], POSITIONS[real] + 1)
