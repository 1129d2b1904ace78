"""The attention interface in numbers: its dialect ops are answered by what they mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qeff_framework.dialect import ops, reference
from qeff_framework.seam.attention import attention_interface
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.scope import Scope, forward_scope

BATCH, HEADS, KEY_HEADS, TOKENS, SLOTS, DIM = 2, 4, 2, 3, 7, 8
GENERATOR = torch.Generator().manual_seed(0)
QUERY = torch.randn(BATCH, HEADS, TOKENS, DIM, generator=GENERATOR)
KEY, VALUE = (torch.randn(BATCH, KEY_HEADS, SLOTS, DIM, generator=GENERATOR) for _ in range(2))
MASK = torch.arange(SLOTS) <= torch.tensor([3, 4, 5])[None, None, :, None].expand(BATCH, 1, -1, 1)


@pytest.fixture(autouse=True)
def meanings(monkeypatch):
    """Puts the reference semantics in the place of the ops."""
    for name in ("attention", "attention_bias", "attention_sinks"):
        meaning = getattr(reference, name)

        def computed(*tensors, meaning=meaning, **attributes):
            return torch.from_numpy(np.asarray(meaning(*(each.numpy() for each in tensors), **attributes)))

        monkeypatch.setattr(ops, name, computed)


def attend(mask=MASK, **arguments):
    plan = MaskPlan()
    with forward_scope(Scope(masks=plan)):
        result, weights = attention_interface(torch.nn.Identity(), QUERY, KEY, VALUE, mask, **arguments)
    assert plan.attention_calls == 1
    assert weights is None
    return result.transpose(1, 2)


def by_hand(visible=MASK, sinks=None):
    key, value = (each.repeat_interleave(HEADS // KEY_HEADS, dim=1) for each in (KEY, VALUE))
    scores = (QUERY @ key.transpose(2, 3) * DIM**-0.5).masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks], dim=3)
    return scores.softmax(dim=-1)[..., :SLOTS] @ value


def test_plain():
    torch.testing.assert_close(attend(), by_hand())


@pytest.mark.parametrize("additive", [False, True])
def test_only_selected_keys_that_the_mask_shows_take_part(additive):
    indices = torch.tensor([[[0, 6], [1, 4], [5, 2]], [[3, 2], [0, 1], [6, 5]]], dtype=torch.int32)
    selected = torch.zeros(BATCH, TOKENS, SLOTS, dtype=torch.bool).scatter(2, indices.long(), value=True)[:, None]
    mask = torch.where(MASK, 0.0, torch.finfo(torch.float32).min) if additive else MASK
    got = attend(mask, indices=indices)
    torch.testing.assert_close(got, by_hand(MASK & selected))
    assert (got - by_hand()).abs().max() > 0.1


@pytest.mark.parametrize("biased", [False, True])
def test_a_sink_for_each_token_takes_probability_and_has_no_value(biased):
    sinks = torch.randn(BATCH, HEADS, TOKENS, 1, generator=GENERATOR)
    bias = {"position_bias": torch.zeros(BATCH, HEADS, TOKENS, SLOTS)} if biased else {}
    torch.testing.assert_close(attend(sinks=sinks, **bias), by_hand(sinks=sinks))
