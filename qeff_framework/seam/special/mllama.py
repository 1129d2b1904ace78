"""Mllama: a layer that attends to images is left out where a prompt has none, by a branch on the cache as a whole.

The rows of a program may have images or none. So the layer runs for all of them, and a token that sees no tile keeps what it
had.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer


def adapt(model: PreTrainedModel) -> None:
    """Wraps the forward of each such layer."""
    module: Any
    for module in model.modules():
        if isinstance(module, MllamaCrossAttentionDecoderLayer):
            module.forward = _where_seen(module.forward)


def _where_seen(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(forward)
    def attend(
        hidden_states: torch.Tensor, *args: Any, cross_attention_mask: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        attended = forward(hidden_states, *args, cross_attention_mask=cross_attention_mask, **kwargs)
        sees = cross_attention_mask.any(dim=-1).squeeze(1).unsqueeze(-1)
        return torch.where(sees, attended, hidden_states)

    return attend
