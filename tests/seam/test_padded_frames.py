"""What follows padded frames: real frames are what they are without padding."""

from __future__ import annotations

import pytest
import torch

from qeff_framework.seam.padded_frames import PaddedFrames


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_norms_and_padded_convolutions_see_real_frames_only(groups: int) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv1d(1, 6, kernel_size=5, stride=3),
        torch.nn.GroupNorm(groups, 6),
        torch.nn.GELU(),
        torch.nn.Conv1d(6, 6, kernel_size=3, padding=1, groups=2),
        torch.nn.Conv1d(6, 6, kernel_size=3, padding=1, dilation=1),
        torch.nn.GroupNorm(groups, 6),
    )
    clip = torch.randn(1, 1, 41)
    padded = torch.nn.functional.pad(clip, (0, 30), value=7.0)
    mask = torch.zeros(1, 71, dtype=torch.int64)
    mask[:, :41] = 1
    wanted = layers(clip)
    with PaddedFrames(71, mask):
        found = layers(padded)
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted)
    assert not torch.allclose(layers(padded)[..., : wanted.shape[-1]], wanted, atol=1e-2)


def test_a_value_is_set_by_a_mask_in_place() -> None:
    values = torch.ones(2, 3, 4)
    mask = torch.tensor([[1, 0, 0], [1, 1, 0]])
    with PaddedFrames(3, mask):
        values[~mask.bool()] = 0
    assert values.sum(dim=2).tolist() == [[4, 0, 0], [4, 4, 0]]
