"""Comparing a program with Transformers in float32: what it says of given texts, token by token, and what its layers have stored.

Both read the same tokens, so that one differing token does not make everything behind it differ.
"""

from __future__ import annotations

from qeff_framework.compare.comparison import Comparison, compare
from qeff_framework.compare.figures import Figures, LayerError
from qeff_framework.compare.passages import BUILT_IN_PROMPTS, BUILT_IN_TEXT, Passage

__all__ = ["BUILT_IN_PROMPTS", "BUILT_IN_TEXT", "Comparison", "Figures", "LayerError", "Passage", "compare"]
