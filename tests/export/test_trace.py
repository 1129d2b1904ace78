"""Tracing with symbolic sizes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.fx.experimental import proxy_tensor

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export import trace as tracing
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


class LearnedPositions(torch.nn.Module):
    """Adds the first rows of a table of 16, as an encoder with learned positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Buffer(torch.arange(16.0))

    def forward(self, values: list[torch.Tensor]) -> torch.Tensor:
        return values[0] + values[1] + self.table[: values[1].shape[1]]


@pytest.mark.parametrize("torch_tells_early", [True, False])
def test_the_bound_of_a_table_takes_no_second_trace(torch_tells_early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    once = tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda *args: runs.append(args) or once(*args))
    if not torch_tells_early:  # A version of torch that keeps its bounds elsewhere.
        monkeypatch.setattr(tracing, "taking_bounds", lambda *_: nullcontext())
    size = Dim("size", min=1)

    # Dimensions by axis, and one for each axis: torch takes both.
    program = trace(LearnedPositions(), ([torch.ones(2, 9), torch.ones(2, 9)],), ([{1: size}, (None, size)],))

    assert len(runs) == (1 if torch_tells_early else 2)
    for count in (1, 9, 16):
        assert program.module(check_guards=False)([torch.ones(2, count)] * 2)[1].tolist() == [
            2.0 + place for place in range(count)
        ]


class Convolved(torch.nn.Module):
    """Makes sums of seven numbers that lie side by side, as a model of sound makes frames of samples."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv1d(values[:, None], torch.ones(1, 1, 7))


def test_the_fewest_samples_of_a_frame_take_no_second_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    once = tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda *args: runs.append(args) or once(*args))

    program = trace(Convolved(), (torch.ones(2, 9),), ({1: Dim("size", min=1)},))

    assert len(runs) == 1
    for count in (7, 12):
        assert program.module(check_guards=False)(torch.ones(2, count)).tolist() == [[[7.0] * (count - 6)]] * 2


class OneSize(torch.nn.Module):
    """Takes rows of five numbers alone."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.ones(5)


def test_a_dimension_of_one_size_is_no_bound() -> None:
    program = trace(OneSize(), (torch.ones(2, 5),), ({1: Dim("size", min=1)},))

    with pytest.raises(AssertionError, match="size"):
        program.module()(torch.ones(2, 4))


def test_only_the_exporting_thread_makes_nodes_without_their_layout() -> None:
    described = proxy_tensor._extract_tensor_metadata
    found: list[Any] = []

    def describe() -> None:
        found.append(proxy_tensor._extract_tensor_metadata(torch.ones(2)))

    class Watched(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            if not found:
                describe()
                other = threading.Thread(target=describe)
                other.start()
                other.join()
            return values + 1

    trace(Watched(), (torch.ones(2, 5),), ({1: Dim("size", min=1)},))

    assert found[0] is None
    assert tuple(found[1].shape) == (2,)
    assert proxy_tensor._extract_tensor_metadata is described
