"""XLM: predicts the token behind a text from a mask token that stands there, and reads the whole text again for each one.

Each token of a step gets a mask token of its own, one position further, that sees what the token sees and itself. It runs beside
the tokens and is never written to the cache. From Transformers 5.24 on, `generate` hands a cache to the model, in which the mask
token takes the slot of the token that comes next, so that this one is never read. What counts is the result without a cache.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function
from transformers.modeling_outputs import CausalLMOutput

from qeff_framework.seam.attention import attention_interface
from qeff_framework.seam.masks import mask_interface
from qeff_framework.seam.scope import Step, current_step


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of a language model and of its attentions; an encoder or a classifier stays as it is."""
    if not hasattr(model, "pred_layer"):
        return
    running = _Running()
    for module in model.modules():
        if hasattr(module, "q_lin") and hasattr(module, "out_lin"):
            module.forward = MethodType(_attention_with(running), module)
    model.forward = MethodType(_forward_with(running), model)


class _Running:
    """What the attentions of a running forward need."""

    mask: torch.Tensor | None = None


def _forward_with(running: _Running) -> Any:
    def forward(self: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, cache: Any, **_: Any) -> Any:
        tokens = torch.cat([input_ids, torch.full_like(input_ids, self.config.mask_token_id)], dim=1)
        language = self.config.lang_id
        running.mask = _mask(current_step(), self.config)
        try:
            hidden = self.transformer(
                # Embeddings, since from ids it would conclude how many tokens are no padding.
                inputs_embeds=self.transformer.embeddings(tokens),
                attention_mask=torch.ones_like(tokens),
                position_ids=torch.cat([position_ids, position_ids + 1], dim=1),
                langs=None if language is None else torch.full_like(tokens, language),
                cache=cache,
                return_dict=True,
            ).last_hidden_state
        finally:
            running.mask = None
        return CausalLMOutput(logits=self.pred_layer(hidden[:, input_ids.shape[1] :])[0])

    return forward


def _mask(step: Step | None, config: Any) -> torch.Tensor:
    """``[B, 1, 2 S, C + S]``: the tokens and their mask tokens, over the cache and the mask tokens."""
    assert step is not None  # noqa: S101  (only exports of causal LMs, which have one, call this)
    positions = step.position_ids
    batch, seq = positions.shape
    causal: Any = causal_mask_function  # annotated for numbers
    cached = mask_interface(batch, seq, step.kv_positions.shape[0], mask_function=causal, config=config)
    own = (positions[:, :, None] == positions[:, None, :]).unsqueeze(1)
    of_tokens = torch.cat([cached, torch.zeros_like(own)], dim=3)
    return torch.cat([of_tokens, torch.cat([cached, own], dim=3)], dim=2)


def _attention_with(running: _Running) -> Any:
    def attention(self: Any, hidden: torch.Tensor, mask: Any, cache: Any, **_: Any) -> tuple[torch.Tensor]:
        del mask
        heads = (*hidden.shape[:2], self.n_heads, self.head_dim)
        query, key, value = (
            project(hidden).view(heads).transpose(1, 2) for project in (self.q_lin, self.k_lin, self.v_lin)
        )
        tokens = hidden.shape[1] // 2
        keys, values = cache.update(key[:, :, :tokens], value[:, :, :tokens], self.layer_id)
        keys, values = torch.cat([keys, key[:, :, tokens:]], dim=2), torch.cat([values, value[:, :, tokens:]], dim=2)
        attended, _weights = attention_interface(self, query, keys, values, running.mask)
        return (self.out_lin(attended.flatten(2)),)

    return attention
