"""BigBird for question answering: its tokenizer gives no token types, and it tells question and context apart by the separator.

Type 0 everywhere, which other models take when none are given, means something else to it. So its graph takes no token types.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Takes the argument away from a head for question answering; every other model stays as it is."""
    if hasattr(model, "qa_classifier"):
        model.forward = MethodType(_without_token_types(type(model).forward), model)


def _without_token_types(forward: Any) -> Any:
    def answer(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return forward(self, input_ids=input_ids, attention_mask=attention_mask)

    return answer
