"""Switch Transformers: experts in modules of their own, run in a loop over those that data choose; the router casts its weights.

The weights of the experts are stacked in the graph. A step reads those of all experts, unless the backend folds constants.
An expert takes so many tokens of one pass, in Transformers as well: a text for the decoder that is longer than that may give
other tokens read in one step than in several.
"""

from __future__ import annotations

from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from qeff_framework.dialect import ops
from qeff_framework.seam.experts import find_activation


def adapt(model: PreTrainedModel) -> None:
    """Replaces the feed-forward layers that choose experts."""
    module: Any
    for module in model.modules():
        if hasattr(module, "router") and hasattr(module, "experts"):
            module.gate = replace(find_activation(next(iter(module.experts.values())).act), gated=0)
            module.forward = MethodType(_feed_forward, module)


def _feed_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    ids, weights = _choice(self.router, hidden_states)
    up, down = (
        torch.stack([getattr(expert, name).weight.t() for expert in self.experts.values()]) for name in ("wi", "wo")
    )
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    mixed = ops.moe(flat, ids.reshape(-1, 1), weights.reshape(-1, 1), up, down, None, self.gate)
    return mixed.view_as(hidden_states)


def _choice(router: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The expert of each token ``[B, S]`` and its weight, zero where as many tokens in front as fit have chosen the same."""
    weights, ids = torch.softmax(router.classifier(hidden), dim=-1).max(dim=-1)
    places = torch.arange(hidden.shape[1])
    in_front = places <= places[:, None]
    rank = ((ids[:, :, None] == ids[:, None, :]) & in_front).sum(dim=2)
    return ids, torch.where(rank <= router.expert_capacity, weights, torch.zeros_like(weights))
