"""DBRX: experts that predate the library's interface for them, in weights ``[E * I, H]``, chosen by branches on data."""

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
        if all(hasattr(module, name) for name in ("w1", "v1", "w2")):
            module.gate = find_activation(module.activation_fn)
        elif hasattr(module, "ffn_hidden_size") and hasattr(module, "num_experts"):
            module.forward = MethodType(_experts, module)


def _experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    sizes = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    gate, linear, down = (weight.view(sizes) for weight in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    up = torch.cat([gate, linear], dim=1).transpose(1, 2)
    flat = hidden_states.reshape(-1, self.hidden_size)
    return ops.moe(flat, top_k_index, top_k_weights, up, down, None, self.mlp.gate).view_as(hidden_states)
