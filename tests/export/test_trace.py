"""Tracing with symbolic sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.trace import trace


class FirstHalf(torch.nn.Module):
    """The sum of the first half of its input, whose size `half` computes."""

    def __init__(self, half: Callable[[Any], Any]) -> None:
        super().__init__()
        self.half = half

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, : self.half(values.shape[1])].sum(1)


def traced(half: Callable[[Any], Any]) -> torch.nn.Module:
    return trace(FirstHalf(half), (torch.ones(2, 9),), ({1: Dim("size", min=2, max=64)},)).module()


@pytest.mark.parametrize(
    "half", [lambda size: int(size / 2), lambda size: int(size * 0.5), lambda size: round(float(size / 2) - 0.25)]
)
def test_plain_numbers_made_of_sizes_are_refused(half: Callable[[Any], Any]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"computes with a size as with a number \((int|float)\(\) in .*lambda>\)"
    ):
        traced(half)
    assert "host_numbers" not in torch.SymFloat.__int__.__code__.co_filename


@pytest.mark.parametrize("half", [lambda size: size // 2, lambda size: math.trunc(size / 2)])
def test_numbers_that_stay_symbolic_are_followed(half: Callable[[Any], Any]) -> None:
    for size in (9, 20, 33):
        assert traced(half)(torch.ones(2, size)).tolist() == [size // 2] * 2
