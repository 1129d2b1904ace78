"""Random weights that make a tiny model's output depend on its input.

With the usual initialisation (standard deviation 0.02) a tiny model is nearly the identity: it repeats one token whatever
the prompt, and any export of it would pass.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from qeff_framework.coverage import sizes

_GAIN: Final = 2.5
_NOISE: Final = 0.05
# Tied heads favour the token that is already there: a small embedding keeps its share of the residual stream small.
_EMBEDDING_GAIN: Final = 0.6
# Tables of token types, languages and the like add the same row to every token.
_SHARED_ROWS: Final = 16
_SHARED_ROW_GAIN: Final = 0.04


def randomise(model: torch.nn.Module) -> None:
    """Redraw the weights of `model` in place from torch's global generator.

    Matrices get a standard deviation of gain / sqrt(fan-in), so that signals neither vanish nor blow up over the layers.
    Vectors (norm scales, biases, routing corrections) keep what the family's own initialisation gave, plus noise, since
    their right centre (0 or 1) is known only to the family. Raw parameters that are not centred on zero (the decay rates
    of state-space layers) keep the family's values: arbitrary ones would make the recurrence unstable.
    """
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in seen and parameter.is_floating_point():
                    seen.add(id(parameter))
                    _redraw(module, parameter)
            for name, buffer in module.named_buffers(recurse=False):
                persistent = name in module.state_dict()
                if persistent and buffer.is_floating_point() and buffer.ndim == 1 and not buffer.any():
                    # Corrections that are added to routing scores start at zero and would never change a choice.
                    buffer.normal_(0.0, _NOISE)


def _redraw(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    if isinstance(module, torch.nn.Embedding):
        if _is_computed(parameter):
            return
        gain = _EMBEDDING_GAIN if parameter.shape[0] > _SHARED_ROWS else _SHARED_ROW_GAIN
        parameter.normal_(0.0, gain / math.sqrt(parameter.shape[-1]))
        if module.padding_idx is not None:
            parameter[module.padding_idx] = 0.0
    elif parameter.ndim < 2:
        parameter.add_(torch.randn_like(parameter), alpha=_NOISE)
    elif isinstance(module, torch.nn.Linear) or _is_centred(parameter):
        parameter.normal_(0.0, _GAIN / math.sqrt(_fan_in(parameter)))
        _balance(parameter)


def _fan_in(parameter: torch.Tensor) -> float:
    if parameter.ndim == 2:
        return parameter.shape[1]
    if parameter.ndim == 3 and parameter.shape[1] > 1:
        # A stack of expert matrices; families differ in which axis is the input.
        return math.sqrt(parameter.shape[1] * parameter.shape[2])
    return math.prod(parameter.shape[1:])


def _balance(parameter: torch.nn.Parameter) -> None:
    """Let the rows of a matrix that contracts the feed-forward width sum to zero.

    The activation in front of it has a positive mean; passed on, that mean becomes one direction common to all tokens,
    which grows over the layers until every token looks the same.
    """
    if parameter.ndim != 2:
        return
    inputs = int(parameter.shape[1] > parameter.shape[0])  # GPT-2 stores its matrices transposed
    if parameter.shape[inputs] > sizes.HIDDEN and parameter.shape[0] != parameter.shape[1]:
        parameter.sub_(parameter.mean(inputs, keepdim=True))


def _is_centred(parameter: torch.Tensor) -> bool:
    deviation, mean = torch.std_mean(parameter)
    return bool(mean.abs() <= 0.5 * deviation) or not bool(parameter.any())


def _is_computed(table: torch.Tensor) -> bool:
    """Whether an embedding table holds sines and cosines: wide, yet within [-1, 1]."""
    return bool(table.abs().max() <= 1.0) and float(table.std()) > 0.5
