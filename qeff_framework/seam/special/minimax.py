"""MiniMax: its model accepts a cache of one class only, and its linear attentions keep their states by calls of that class.

The model looks at the class when it is asked to use a cache, and uses the one that it is given in any case. The states go to the
cache by the calls that other hybrid models make.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import Cache, PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of the model and of each linear attention."""
    module: Any
    for module in model.modules():
        if hasattr(module, "slope_rate"):
            module.forward = MethodType(_attention_with(type(module).forward), module)
        elif isinstance(module, PreTrainedModel) and hasattr(module, "layers"):
            module.forward = MethodType(_model_with(type(module).forward), module)


def _model_with(forward: Any) -> Any:
    def model(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **{**kwargs, "use_cache": False})

    return model


def _attention_with(forward: Any) -> Any:
    def attention(self: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        name = "cache" if "cache" in kwargs else "past_key_values"  # Transformers 5.24 renamed it.
        return forward(self, *args, **{**kwargs, name: _LinearCache(kwargs[name])})[0], None

    return attention


class _LinearCache:
    """The calls that the attention makes."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        state: torch.Tensor | None = self._cache.get_recurrent_state(layer_idx)
        return state

    def set_linear_cache(self, layer_idx: int, state: torch.Tensor) -> None:
        self._cache.update_recurrent_state(state, layer_idx)
