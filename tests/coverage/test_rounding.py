"""Differences in which a number that is none must not get lost."""

from __future__ import annotations

import math

from qeff_framework.coverage.rounding import largest


def test_nan_is_the_largest_wherever_it_stands() -> None:
    nan = float("nan")
    assert all(math.isnan(largest(*each)) for each in ((nan, 1.0), (1.0, nan), (0.0, nan, 2.0)))
    assert largest(1.0, 3.0, 2.0) == 3.0
