"""Very negative constants, which stand for "not visible", are moved to a number that the precision can hold.

In float16 the lowest float32 is -inf. In a quantised graph it takes the whole range, and every other score becomes zero.
"""

from __future__ import annotations

from qeff_framework.lowering import LimitConstants, Limits

#: Nothing that a model computes with is as low as this.
_THRESHOLD = -1e4
#: Larger constants are weights, and need not be read.
_MAX_ELEMENTS = 1 << 22


class FiniteMasks(LimitConstants):
    """Raises constants below -1e4 to `lowest`."""

    name = "FiniteMasks"

    def __init__(self, lowest: float) -> None:
        super().__init__(Limits(lowest=_THRESHOLD, low=lowest), max_elements=_MAX_ELEMENTS)
