"""Blocks of tokens: what each token sees of those before it, in chunks of any length, and the selection of slots."""

from __future__ import annotations

import pytest
import torch

from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.scope import Scope, Step, forward_scope
from qeff_framework.seam.states import StateId
from qeff_framework.seam.windows import highest, windows


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_windows_go_on_over_chunks_and_begin_anew_at_position_0(width):
    rows = [torch.rand(7, 5), torch.rand(4, 5)]
    state, held = StateId(layer=0, role="conv"), torch.full((2, 5, width), 9.0)
    found: list[list[torch.Tensor]] = [[], []]

    for start in range(0, 9, 3):  # the last step has one token and padding, the second row none in it
        tokens, positions = torch.full((2, 3, 5), 99.0), torch.full((2, 3), -1)
        for row, texts in enumerate(rows):
            piece = texts[start : start + 3]
            tokens[row, : len(piece)] = piece
            positions[row, : len(piece)] = torch.arange(start, start + len(piece))
        cache = SeamCache(8, {state: held})
        step = Step(position_ids=positions, kv_positions=torch.arange(8))
        with forward_scope(Scope(masks=MaskPlan(), step=step)):
            result = windows(cache, tokens, width, layer=0)
        held = cache.states[state]
        for row in range(2):
            found[row] += list(result[row, positions[row] >= 0])

    for texts, results in zip(rows, found, strict=True):
        padded = torch.cat([torch.zeros(width - 1, 5), texts])
        assert torch.equal(torch.stack(results), padded.unfold(0, width, 1).transpose(1, 2))


def test_highest_takes_no_more_than_is_allowed():
    scores = torch.tensor([[[1.0, 5.0, 3.0, 4.0], [9.0, 8.0, 7.0, 6.0]]])
    allowed = torch.tensor([[[[True, False, True, True], [False, True, False, False]]]])

    two, many = highest(scores, allowed, 2), highest(scores, allowed, 6)

    assert two.tolist() == [[[[False, False, True, True], [False, True, False, False]]]]
    assert torch.equal(many, allowed)
