"""RecurrentGemma: its convolutions and recurrences keep their states in attributes of their modules instead of the cache.

The states go to the cache, by the calls that other hybrid models make. The recurrence alone asks for the recurrent state, so it
alone runs token by token.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of each recurrent block and of its recurrence."""
    module: Any
    for name, module in model.named_modules():
        if hasattr(module, "rg_lru"):
            layer = int(next(part for part in name.split(".") if part.isdigit()))
            module.forward = MethodType(_block_with(layer), module)
            module.rg_lru.forward = MethodType(_recurrence_with(layer, type(module.rg_lru).forward), module.rg_lru)


def _block_with(layer: int) -> Any:
    def block(
        self: Any,
        input_states: torch.Tensor,
        position_ids: torch.Tensor,
        *_: Any,
        cache: Any = None,
        past_key_values: Any = None,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        cache = cache if past_key_values is None else past_key_values  # Transformers 5.24 renamed it.
        branch = self.linear_x(input_states).transpose(1, 2)
        width, tokens = self.conv1d_width, branch.shape[-1]
        columns = cache.update_conv_state(branch, layer, conv_kernel_size=width)
        if not cache.has_previous_state(layer):
            columns = functional.pad(branch, (width - 1, 0))
        weight, bias = self.conv_1d.weight, self.conv_1d.bias
        # Without the padding that the module has: the columns before the step are the cache's.
        convolved = functional.conv1d(columns, weight, bias, groups=weight.shape[0])[..., -tokens:]
        recurrent = self.rg_lru(convolved.transpose(1, 2), position_ids, cache)
        return self.linear_out(recurrent * self.act_fn(self.linear_y(input_states))), None

    return block


def _recurrence_with(layer: int, forward: Any) -> Any:
    def recurrence(self: Any, activations: torch.Tensor, position_ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        self.recurrent_states = cache.get_recurrent_state(layer)
        result: torch.Tensor = forward(self, activations, position_ids)
        cache.update_recurrent_state(self.recurrent_states, layer)
        self.recurrent_states = None
        return result

    return recurrence
