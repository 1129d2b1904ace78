"""How many frames a model of sound makes of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qeff_framework.errors import UnsupportedModelError

#: Numbers of frames over which a form is found and checked.
_CHECKED = 40


@dataclass(frozen=True, kw_only=True)
class FrameCount:
    """``(length + offset) // stride`` frames: what any stack of strided convolutions comes to."""

    stride: int
    offset: int

    def __call__(self, length: int) -> int:
        """Frames of a clip."""
        return (length + self.offset) // self.stride

    def as_json(self) -> dict[str, int]:
        """For the metadata of a program."""
        return {"stride": self.stride, "offset": self.offset}


def frame_count(frames: int | torch.SymInt, lengths: Sequence[int | torch.SymInt]) -> FrameCount:
    """The closed form of `frames`, a size in a traced program, in the length of its inputs, which has a symbol in each of them.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(frames, int):
        raise UnsupportedModelError("the number of its frames does not depend on the length of its input")
    form = frames.node.expr
    # A comparison of sizes may have narrowed the lengths to such as 4 k - 1, and k does not tell what lies between.
    known = {length.node.expr for length in lengths if not isinstance(length, int)}
    if len(form.free_symbols) != 1 or not form.free_symbols <= known:
        raise UnsupportedModelError(f"the number of its frames is not told by the length of its input alone: {form}")
    (symbol,) = form.free_symbols

    def count(size: int) -> int:
        return int(form.subs({symbol: size}))

    found = _fit(count)
    if found is None:
        raise UnsupportedModelError(f"the number of its frames has no closed form in the length of its input: {form}")
    return found


def _fit(count: Callable[[int], int]) -> FrameCount | None:
    """Lengths at which one more frame begins tell stride and offset; all lengths in their range are compared."""
    first = _begin(count, 2, 1)
    stride = _begin(count, 3, first) - first
    found = FrameCount(stride=stride, offset=2 * stride - first)
    top = first + _CHECKED * stride
    checked = {*range(first, min(top, first + 2000)), top - 1, top, 10 * top}
    return found if all(found(size) == count(size) for size in checked) else None


def _begin(count: Callable[[int], Any], frames: int, low: int) -> int:
    """The least length with this many frames."""
    high = low
    while count(high) < frames:
        high *= 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= frames else (middle + 1, high)
    return low
