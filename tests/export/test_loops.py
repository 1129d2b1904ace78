"""Which steps of recurrent modules share one trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from qeff_framework.export.loops import _firsts
from qeff_framework.seam.loops import Leaf, LoopSite


class Scaled(torch.nn.Module):
    """Scales what it gets by its weight, by a number of its code, and by a table."""

    def __init__(self, factor: float = 2.0, table: float = 1.0, size: int = 4) -> None:
        super().__init__()
        self.factor = factor
        self.weight = torch.nn.Parameter(torch.randn(size), requires_grad=False)
        self.table = torch.nn.Buffer(torch.full((size,), table))
        self.counted = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.weight * self.factor * self.table


class Counting(Scaled):
    """Leaves something behind in itself: which call of it comes first may matter."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.counted += 1
        return super().forward(hidden)


@pytest.mark.parametrize(
    ("modules", "firsts"),
    [
        ([Scaled()], {}),
        ([Scaled(), Scaled(), Scaled()], {0: 0, 1: 0, 2: 0}),
        ([Scaled(3.0), Scaled(), Scaled(3.0), Scaled()], {0: 0, 2: 0, 1: 1, 3: 1}),
        ([Scaled(), Scaled(table=3.0)], {}),
        ([Scaled(), Scaled(size=8)], {}),
        ([Counting(), Counting()], {}),
    ],
    ids=["one", "alike", "two kinds", "other buffers", "other sizes", "with a count"],
)
def test_steps_that_do_the_same_have_one_trace(modules: list[Any], firsts: dict[int, int]) -> None:
    sites = [site(f"layers.{number}", len(module.weight)) for number, module in enumerate(modules)]
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(modules)

    assert _firsts(model, sites, 2) == firsts


def site(name: str, size: int) -> LoopSite:
    """A module that gets ``[B, S, size]`` and keeps no state."""
    hidden = Leaf(kind="tokens", axis=1, shape=(2, 3, size))
    tree = pytree.tree_flatten(((0,), {}))[1]
    return LoopSite(
        name=name,
        states=(),
        inputs=(hidden,),
        input_tree=tree,
        outputs=(hidden,),
        output_tree=pytree.tree_flatten(0)[1],
    )
