"""How far the tokens of a program that computes in FP16 may be from eager decoding in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tests.eager import eager_attention

#: Scores this close, in standard deviations of all scores, may change places in FP16.
NEAR_TIE = 0.05


def same_up_to_near_ties(
    module: PreTrainedModel, prompt: Sequence[int], ours: Sequence[int], eager: Sequence[int]
) -> bool:
    """Says whether `ours` equals `eager`. Where they part, the two tokens must have nearly equal scores in float32.

    What follows such a place is another text, and is not compared.
    """
    place = next((number for number, pair in enumerate(zip(ours, eager, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        assert len(ours) == len(eager)
        return True
    ids = torch.tensor([[*prompt, *eager[:place]]])
    with eager_attention(module), torch.no_grad():
        scores = module(ids).logits[0, -1]
    distance = float((scores[eager[place]] - scores[ours[place]]) / scores.std())
    assert 0 <= distance < NEAR_TIE, f"token {place} differs although its score is {distance:.3f} deviations away"
    return False
