"""Llama 4 with images: its forward reads ``image_outputs`` of its language model's output, which Transformers 5.24 does not set.

So that class generates nothing in Transformers. The field holds the image encoder's output for callers, and no graph reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Gives the output of the language model that field, where it lacks it."""
    language = getattr(model, "language_model", None)
    if isinstance(language, torch.nn.Module):
        language.register_forward_hook(add_image_outputs)


def add_image_outputs(_module: torch.nn.Module, _args: Any, outputs: Any) -> None:
    """A forward hook of the language model."""
    if not hasattr(outputs, "image_outputs"):
        object.__setattr__(outputs, "image_outputs", None)
