"""Medians and spreads of what rounds have measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of several rounds, and the lowest and the highest one."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """The spread of one number or more."""
        return cls(median=statistics.median(numbers), lowest=min(numbers), highest=max(numbers))


def ratio(numbers: Sequence[float], others: Sequence[float]) -> Spread:
    """The spread of ``numbers / others``, round by round: what slows a machine in one round slows both."""
    return Spread.of([number / other for number, other in zip(numbers, others, strict=True)])
