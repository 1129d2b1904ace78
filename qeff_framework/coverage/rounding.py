"""How far random weights amplify rounding: what a bit of the input moves in PyTorch's own results.

A program adds in another order than PyTorch, which rounds otherwise. Where a bit of the input moves the results of PyTorch itself
further than a tolerance, holding a program to the tolerance would tell nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

#: The last bit of a float32, up and down, as a part of the number. Both: what is nearly tied, as two experts for a token may be,
#: changes places in one direction only.
BITS: Final = (2**-23, -(2**-23))
#: As many times as a program may round otherwise.
ROUNDINGS: Final = 4


def changed_by(bit: float, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`inputs` with each number that has a fraction a bit larger or smaller."""
    return {name: value * (1 + bit) if value.is_floating_point() else value for name, value in inputs.items()}


def largest(*differences: float) -> float:
    """The largest, or NaN where one is: `max` forgets a NaN that stands behind a number."""
    return next((each for each in differences if math.isnan(each)), max(differences))
