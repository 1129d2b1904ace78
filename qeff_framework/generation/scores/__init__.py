"""Rules that change the scores of a row's next token, with the results of Transformers' logits processors.

They are written in NumPy, so that running a program imports neither torch nor transformers, and they keep what they know about a
row up to date token by token: a step costs the same however long the text is.
"""

from __future__ import annotations

from qeff_framework.generation.scores.build import build_rules
from qeff_framework.generation.scores.rule import ScoreRule

__all__ = ["ScoreRule", "build_rules"]
