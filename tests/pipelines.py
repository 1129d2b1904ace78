"""Pipelines of diffusers with tiny random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qeff_framework.coverage.tiny_pipelines import tiny_pipeline


def tiny_stable_diffusion() -> Any:
    """Stable Diffusion 1: pictures of 64 x 64, latents of 8 x 8."""
    return tiny_pipeline("stable-diffusion").pipeline


def random_adapter(parts: Mapping[str, Any], *, seed: int, rank: int, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """A LoRA adapter as diffusers names its tensors, for the layers of `parts` whose names end in one of `layers`.

    `parts`: components by the prefix of their names.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for prefix, module in parts.items():
        for name, layer in module.named_modules():
            if name.endswith(tuple(layers)):
                outputs, *inputs = layer.weight.shape
                ones = [1] * (len(inputs) - 1)
                down = torch.randn(rank, *inputs, generator=generator) / rank
                found[f"{prefix}.{name}.lora_A.weight"] = down
                found[f"{prefix}.{name}.lora_B.weight"] = torch.randn(outputs, rank, *ones, generator=generator) / 4
    return found
