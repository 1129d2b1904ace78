from __future__ import annotations

import pytest
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.positions import require_no_text_length


class Scaled(torch.nn.Module):
    """Scales tokens by something that is computed from all positions of the step."""

    def __init__(self, scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return input_ids * self.scale(position_ids)


def traced(scale) -> torch.export.ExportedProgram:
    example = (torch.ones((2, 3), dtype=torch.int64), torch.arange(3).expand(2, -1).contiguous())
    axes = {0: torch.export.Dim("rows", min=1), 1: torch.export.Dim("tokens", min=1)}
    return torch.export.export(Scaled(scale), example, dynamic_shapes=(axes, axes), strict=False)


@pytest.mark.parametrize(
    "scale",
    [
        lambda positions: torch.where(torch.max(positions) + 1 > 16, 2.0, 1.0),
        lambda positions: torch.log((positions + 1).amax().float()),
    ],
    ids=["max", "amax"],
)
def test_a_length_that_a_chunk_does_not_know_is_refused(scale):
    with pytest.raises(UnsupportedModelError, match="the length of the text from the greatest position of the step"):
        require_no_text_length(traced(scale))


def test_what_is_computed_for_each_token_passes():
    program = traced(lambda positions: torch.log(positions.float() + 1.0))
    assert any(node.target is torch.ops.aten.log.default for node in program.graph.nodes)
    require_no_text_length(program)
