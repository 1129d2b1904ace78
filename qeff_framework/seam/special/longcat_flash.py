"""LongCat-Flash: experts outside the library's interface, some of which hand the hidden state on as it is.

Those have rows in the first weight, which nobody reads, and none in the second. Zeros there make them experts like the others
that add nothing; what they hand on is added apart.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from qeff_framework.dialect import ops
from qeff_framework.seam.experts import find_activation


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of each set of experts."""
    module: Any
    for module in model.modules():
        if hasattr(module, "zero_expert_num") and hasattr(module, "gate_up_proj"):
            module.gate = find_activation(module.act_fn)
            module.forward = MethodType(_experts, module)


def _experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    handed_on = torch.where(top_k_index >= self.num_routed_experts, top_k_weights, torch.zeros_like(top_k_weights))
    identity = hidden_states * handed_on.sum(dim=1, keepdim=True)
    nothing = torch.zeros((self.zero_expert_num, *self.down_proj.shape[1:]), dtype=self.down_proj.dtype)
    down = torch.cat([self.down_proj, nothing])
    weights = top_k_weights - handed_on
    up, down = self.gate_up_proj.transpose(1, 2), down.transpose(1, 2)
    return identity + ops.moe(hidden_states, top_k_index, weights, up, down, None, self.gate)
