"""Random numbers of rows: each row draws from a generator of its own, whatever its neighbours do."""

from __future__ import annotations

import sys

import numpy as np

from qeff_framework.generation.settings import GenerationSettings


def seed_of(settings: GenerationSettings) -> int:
    """The given seed, else one from torch's global generator, so that ``torch.manual_seed`` governs it."""
    if settings.seed is not None:
        return settings.seed
    # Nobody can have seeded a torch that is not loaded, and running a program does not load it.
    torch = sys.modules.get("torch")
    return int(np.random.SeedSequence().generate_state(1)[0] if torch is None else torch.randint(2**62, (1,)).item())


def generator_of(seed: int, row: int) -> np.random.Generator:
    """The generator of a row. Seeds or rows next to each other give unrelated numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, row]))
