"""Text generation with loaded programs: decoder-only and encoder-decoder language models.

Decoding, its rules and sampling need NumPy only; what belongs to Transformers (generation configs, the caller's logits
processors, stopping criteria, streamers, watermarks) imports it when it is used.
"""

from __future__ import annotations

from qeff_framework.generation.generation_config import load_generation_defaults, resolve_settings
from qeff_framework.generation.loop import TextGenerator
from qeff_framework.generation.output import GenerationOutput, PerfMetrics
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.settings import SCORE_SETTINGS, GenerationSettings
from qeff_framework.generation.streaming import Detokenizer, TextStream

__all__ = [
    "SCORE_SETTINGS",
    "Detokenizer",
    "GenerationOutput",
    "GenerationSettings",
    "PerfMetrics",
    "ProgramShape",
    "TextGenerator",
    "TextStream",
    "load_generation_defaults",
    "resolve_settings",
]
