"""Pipelines of diffusers with tiny random weights."""

from __future__ import annotations

from typing import Any

from qeff_framework.coverage.tiny_pipelines import tiny_pipeline


def tiny_stable_diffusion() -> Any:
    """Stable Diffusion 1: pictures of 64 x 64, latents of 8 x 8."""
    return tiny_pipeline("stable-diffusion").pipeline
