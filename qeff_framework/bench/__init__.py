"""Measuring how fast programs run: contenders, each in a process of its own, in rounds that go through all of them in turn.

A contender's process reads one job from standard input, `job`, and writes one result. Each round starts it anew, so that
loading and memory are measured as often as speed, and no idle contender takes time or memory from the one that runs.
"""

from __future__ import annotations

from qeff_framework.bench.figures import Spread, ratio
from qeff_framework.bench.rounds import Case, Contender, Failed, Measured, measure

__all__ = ["Case", "Contender", "Failed", "Measured", "Spread", "measure", "ratio"]
