"""RWKV: a recurrent model without a cache: five stacked tensors for all layers, which its layers change in place.

The last token that a layer has seen goes to the cache as the one column of a convolution, and the sums of its attention as
recurrent states. Columns of the feed-forward parts count as layers of their own behind the others, so that the attention is the
one module that keeps the recurrent states of its layer, and runs token by token.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Lets the forward of `model` take a cache, and attentions and feed-forward parts use it."""
    running = _Running()
    layers = model.config.num_hidden_layers
    module: Any
    for module in model.modules():
        if hasattr(module, "time_decay"):
            module.forward = MethodType(_attention, module)
            module.extract_key_value = MethodType(_key_value, module)
        elif hasattr(module, "time_mix_receptance"):
            module.forward = MethodType(_feed_forward_with(running, layers), module)
        elif hasattr(module, "layers_are_rescaled") and not module.layers_are_rescaled:
            # Halved hidden states and weights, against overflow in half precision, cancel out; a graph has float32.
            module.config.rescale_every = 0
    model.forward = MethodType(_forward_with(running, type(model).forward), model)


class _Running:
    """The cache of a running forward."""

    cache: Any = None


def _forward_with(running: _Running, forward: Any) -> Any:
    def with_cache(self: Any, input_ids: torch.Tensor, cache: Cache, **_: Any) -> Any:
        running.cache = cache
        try:
            # What the model hands through as its state is the cache.
            return forward(self, input_ids=input_ids, state=cache, use_cache=False)
        finally:
            running.cache = None

    return with_cache


def _attention(self: Any, hidden: torch.Tensor, state: Any, **_: Any) -> tuple[torch.Tensor, None]:
    receptance, key, value = self.extract_key_value(hidden, state)
    sums = [state.get_recurrent_state(self.layer_id, number) for number in range(3)]
    library: Any = inspect.getmodule(type(self))
    result, sums = library.rwkv_linear_attention_cpu(
        self.time_decay, self.time_first, key, value, state=None if sums[0] is None else sums, return_state=True
    )
    for number, tensor in enumerate(sums):
        state.update_recurrent_state(tensor, self.layer_id, number)
    return self.output(receptance * result), None


def _key_value(self: Any, hidden: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shifted = _shifted(cache, self.layer_id, hidden)
    receptance = torch.sigmoid(self.receptance(_mixed(hidden, shifted, self.time_mix_receptance)))
    key, value = (
        project(_mixed(hidden, shifted, share))
        for project, share in ((self.key, self.time_mix_key), (self.value, self.time_mix_value))
    )
    return receptance, key, value


def _feed_forward_with(running: _Running, layers: int) -> Any:
    def feed_forward(self: Any, hidden: torch.Tensor, **_: Any) -> tuple[torch.Tensor, Any]:
        shifted = _shifted(running.cache, layers + self.layer_id, hidden)
        key = torch.square(torch.relu(self.key(_mixed(hidden, shifted, self.time_mix_key))))
        receptance = torch.sigmoid(self.receptance(_mixed(hidden, shifted, self.time_mix_receptance)))
        # The next block gets what this one returns.
        return receptance * self.value(key), running.cache

    return feed_forward


def _shifted(cache: Any, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """What came before each token of ``hidden [B, S, H]``; before the first one, what the cache holds."""
    columns = hidden.transpose(1, 2)
    everything = cache.update_conv_state(columns, layer, conv_kernel_size=1)
    if not cache.has_previous_state(layer):
        everything = functional.pad(columns, (1, 0))
    before: torch.Tensor = everything[..., :-1].transpose(1, 2)
    return before


def _mixed(hidden: torch.Tensor, shifted: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return hidden * share + shifted * (1 - share)
