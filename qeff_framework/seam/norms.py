"""Finds RMS norms by what they compute and routes them through the dialect op ``RMSNorm``."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch

from qeff_framework.dialect import ops

#: Relative deviation that float32 rounding explains.
_TOLERANCE = 1e-5
#: Input magnitudes: at the small one the epsilon decides the result.
_MAGNITUDES = (1.0, 1e-3)


@dataclass(frozen=True, kw_only=True)
class RMSNormMatch:
    """How one module computes its norm."""

    #: Dotted name of the module.
    name: str
    epsilon: float
    #: 1.0 where the module multiplies by ``1 + weight``, else 0.0.
    offset: float


def find_rms_norms(module: torch.nn.Module) -> tuple[RMSNormMatch, ...]:
    """The submodules of `module` that behave like an RMS norm with one weight per channel."""
    owners = Counter(id(weight) for part in module.modules() for weight in part._parameters.values())  # noqa: SLF001
    inputs: dict[int, torch.Tensor] = {}
    return tuple(
        match
        for name, submodule in module.named_modules()
        # A weight that another module reads as well must stay what it is.
        if _looks_like_norm(submodule) and owners[id(submodule.weight)] == 1
        if (match := _probe(name, submodule, inputs)) is not None
    )


def replace_rms_norms(model: torch.nn.Module, matches: tuple[RMSNormMatch, ...]) -> None:
    """Lets the matched submodules of `model` emit the dialect op. Its weight must be fed as `effective_weight`."""
    for match in matches:
        submodule = model.get_submodule(match.name)
        submodule.forward = MethodType(_forward_with(match.epsilon), submodule)


def effective_weight(weight: torch.Tensor, match: RMSNormMatch) -> torch.Tensor:
    """The multiplier of the dialect op: the offset of models that store ``weight - 1`` is added."""
    return weight.detach().float() + match.offset if match.offset else weight.detach()


def _forward_with(epsilon: float) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(hidden, self.weight, epsilon=epsilon)

    return forward


def _looks_like_norm(module: torch.nn.Module) -> bool:
    """One weight per channel, nothing else, and hidden states as the only argument (gated norms take two)."""
    # The module's own tables: torch's iterators over them take a third of the search through a model of many layers.
    own, others = module._parameters, (*module._modules.values(), *module._buffers.values())  # noqa: SLF001
    weight = own.get("weight")
    if weight is None or weight.dim() != 1 or not weight.is_floating_point():
        return False
    if any(value is not None for name, value in own.items() if name != "weight") or any(
        value is not None for value in others
    ):
        return False
    return len(inspect.signature(module.forward).parameters) == 1


def _probe(name: str, module: torch.nn.Module, inputs: dict[int, torch.Tensor]) -> RMSNormMatch | None:
    """`inputs`: hidden states of all magnitudes by their number of channels, which modules share."""
    weight = module.weight.detach().float()  # type: ignore[operator]
    hidden = inputs.get(weight.numel())
    if hidden is None:
        hidden = inputs[weight.numel()] = _hidden_states(weight.numel())
    try:
        with torch.no_grad():
            # A copy: a module may write into its argument.
            output = module(hidden.clone())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None  # It takes something else than hidden states: not a norm.
    for epsilon in _epsilons(module):
        for offset in (0.0, 1.0):
            if _same(output, _rms_norm(hidden, weight + offset, epsilon)):
                return RMSNormMatch(name=name, epsilon=epsilon, offset=offset)
    return None


def _hidden_states(channels: int) -> torch.Tensor:
    """``[magnitudes, 4, channels]``"""
    states = torch.randn((4, channels), generator=torch.Generator().manual_seed(0))
    return torch.stack([states * size for size in _MAGNITUDES])


def _epsilons(module: torch.nn.Module) -> Iterator[float]:
    yield from {value for value in vars(module).values() if isinstance(value, float) and 0.0 <= value < 1.0}
    yield torch.finfo(torch.float32).eps  # what torch.nn.RMSNorm takes when it is given none


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon) * weight


def _same(output: object, wanted: torch.Tensor) -> bool:
    """Relative to the largest value of each magnitude."""
    if not isinstance(output, torch.Tensor) or output.shape != wanted.shape or output.dtype != wanted.dtype:
        return False
    largest = wanted.abs().amax((1, 2)).clamp(min=1e-30)
    return bool(((output - wanted).abs().amax((1, 2)) <= _TOLERANCE * largest).all())
