"""How many frames a stack of convolutions makes, read off a traced program."""

from __future__ import annotations

import pytest
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.frame_counts import frame_count


def _traced(module: torch.nn.Module) -> tuple[torch.SymInt, torch.SymInt]:
    length = torch.export.Dim("length", min=100)
    program = torch.export.export(module, (torch.zeros(1, 1, 903),), dynamic_shapes=({2: length},), strict=False)
    (given,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == "clip")
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return output.args[0][0].meta["val"].shape[2], given.meta["val"].shape[2]


class _Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = ((10, 5, 0), (3, 2, 1), (4, 3, 0))
        self.layers = torch.nn.ModuleList(torch.nn.Conv1d(1, 1, kernel, stride, pad) for kernel, stride, pad in sizes)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            clip = layer(clip)
        return clip


def test_a_stack_of_convolutions() -> None:
    stack = _Stack()
    frames, length = _traced(stack)
    found = frame_count(frames, [length])
    for size in (85, 90, 100, 144, 145, 146, 903):
        assert found(size) == stack(torch.zeros(1, 1, size)).shape[2], size


def test_a_number_that_does_not_depend_on_the_length() -> None:
    with pytest.raises(UnsupportedModelError, match="does not depend on the length of its input"):
        frame_count(7, [7])
