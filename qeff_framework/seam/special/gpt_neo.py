"""GPT-Neo: its attention masks by a table of its own, cut out by the number of tokens that the cache holds.

In a cache of fixed size that number says nothing. Layers of the kind ``local`` also have their window in that table only. So
its scores, masks and sums become one call of the attention interface; the scores are not scaled.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from qeff_framework.dialect import ops
from qeff_framework.seam.attention import attention_interface
from qeff_framework.seam.scope import current_step


def adapt(model: PreTrainedModel) -> None:
    """Replaces what each attention does after it has its keys and values."""
    module: Any
    for module in model.modules():
        if hasattr(module, "_attn") and hasattr(module, "attention_type"):
            module._attn = MethodType(_attend, module)  # noqa: SLF001


def _attend(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, None]:
    step = current_step()
    if self.attention_type == "local" and step is not None:
        attention_mask = ops.causal_mask(step.position_ids, step.kv_positions, window=self.config.window_size)
    attended, weights = attention_interface(self, query, key, value, attention_mask, scaling=1.0)
    return attended.transpose(1, 2), weights
