"""JetMoE: sorts its tokens by expert and splits them by counts that only data tell; also its attention chooses experts.

The router here leaves the tokens in their order and tells the expert of each instead of the counts, which is all that the
code between router and experts needs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from qeff_framework.dialect import ops
from qeff_framework.seam.experts import find_activation


def adapt(model: PreTrainedModel) -> None:
    """Replaces the routers, the experts of the attentions and those of the feed-forward layers."""
    module: Any
    for module in model.modules():
        if hasattr(module, "top_k") and hasattr(module, "layer"):
            module.forward = MethodType(_route, module)
        elif hasattr(module, "output_size") and hasattr(module, "num_experts"):
            module.forward = MethodType(_linear, module)
        elif hasattr(module, "router") and hasattr(module, "activation"):
            module.gate = find_activation(module.activation)
            module.forward = MethodType(_feed_forward, module)


def _choice(router: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = router.layer(hidden).float()
    values, ids = logits.topk(router.top_k, dim=1)
    return ids, torch.softmax(values, dim=1).type_as(hidden), logits


def _route(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    ids, weights, logits = _choice(self, hidden_states)
    order = torch.arange(hidden_states.shape[0] * self.top_k)
    return order, order // self.top_k, weights.flatten(), ids.flatten(), logits


def _linear(self: Any, inputs: torch.Tensor, expert_ids: torch.Tensor) -> torch.Tensor:
    return torch.bmm(self.weight[expert_ids], inputs.unsqueeze(2)).squeeze(2)


def _feed_forward(self: Any, layer_input: torch.Tensor) -> torch.Tensor:
    flat = layer_input.reshape(-1, layer_input.shape[-1])
    ids, weights, _ = _choice(self.router, flat)
    up, down = (linear.weight.transpose(1, 2) for linear in (self.input_linear, self.output_linear))
    mixed = ops.moe(flat, ids, weights, up, down, None, self.gate)
    result: torch.Tensor = mixed.view_as(layer_input) + self.bias
    return result
