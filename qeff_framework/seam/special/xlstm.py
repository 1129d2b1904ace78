"""xLSTM: a recurrent model with a cache of its own, whose tensors the model changes in place, in chunks of a fixed length.

Each layer keeps its three states in the cache itself, by the calls that other recurrent models make, and runs token by token.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of the model, and that of each layer."""
    module: Any
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module, "blocks"):
            module.forward = MethodType(_model, module)
            blocks: Any = module.blocks
            for layer, block in enumerate(blocks):
                mixer = block.mlstm_layer
                mixer.forward = MethodType(_mixer_with(layer, type(mixer).forward), mixer)
    model.forward = MethodType(_causal_lm, model)


def _causal_lm(self: Any, input_ids: torch.Tensor, cache: Any, **_: Any) -> Any:
    hidden = self.backbone(input_ids, cache)
    logits = self.lm_head(hidden)
    cap = self.config.output_logit_soft_cap
    return CausalLMOutput(logits=cap * torch.tanh(logits / cap))


def _model(self: Any, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
    hidden = self.embeddings(input_ids)
    for block in self.blocks:
        # What the block hands through to its layer as the state is the cache.
        hidden, _ = block(hidden, cache)
    result: torch.Tensor = self.out_norm(hidden)
    return result


def _mixer_with(layer: int, forward: Any) -> Any:
    def mixer(self: Any, hidden: torch.Tensor, cache: Any) -> tuple[torch.Tensor, None]:
        states = tuple(cache.get_recurrent_state(layer, number) for number in range(3))
        result, new = forward(self, hidden, None if states[0] is None else states)
        for number, state in enumerate(new):
            cache.update_recurrent_state(state, layer, number)
        return result, None

    return mixer
