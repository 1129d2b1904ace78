"""FNet: it mixes tokens by a Fourier transform, for which compilers of accelerators have no operator.

Of the transform over tokens and features only the real part is kept. That is two products of real matrices on each side, whose
sines and cosines are constants once the length is fixed.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Replaces the transform of every layer."""
    module: Any
    for module in model.modules():
        if hasattr(module, "fourier_transform"):
            module.forward = MethodType(_mix, module)


def _mix(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
    del self
    (cos_tokens, sin_tokens), (cos_features, sin_features) = (_waves(size) for size in hidden_states.shape[1:])
    return (cos_tokens @ (hidden_states @ cos_features) - sin_tokens @ (hidden_states @ sin_features),)


def _waves(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[size, size]`` of a discrete Fourier transform."""
    places = torch.arange(size)
    # A tensor: the exporter knows no division by a symbolic size.
    turn = places[-1] + 1
    # Whole turns are taken off while the numbers are integers; float32 would lose them in long texts.
    angles = (places[:, None] * places % turn).to(torch.float32) * (2 * math.pi / turn)
    return angles.cos(), angles.sin()
