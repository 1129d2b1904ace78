"""Numbers in blocks of 8 or 4 bits."""

from __future__ import annotations

import numpy as np
import pytest

from qeff_framework.lowering import WeightBlocks
from qeff_framework.lowering import weight_blocks as module


def restored(weight: np.ndarray, blocks: WeightBlocks) -> np.ndarray:
    """What the levels and scales of `weight` stand for."""
    packed, scales = blocks.levels(weight), blocks.scales(weight)
    assert packed.shape == (*scales.shape, blocks.bytes)
    levels = packed
    if blocks.bits == 4:
        levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, blocks.size)
    numbers = (levels.astype(np.float32) - 2 ** (blocks.bits - 1)) * scales[..., None]
    return numbers.reshape(*weight.shape[:-1], -1)[..., : weight.shape[-1]]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(5, 32), (3, 40), (2, 3, 64)], ids=str)
def test_no_number_moves_by_more_than_a_level(bits, shape, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 70)  # several pieces, the last one shorter
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    blocks = WeightBlocks(bits=bits, size=32)
    found = restored(weight, blocks)

    scales = np.repeat(np.abs(blocks.scales(weight)), 32, axis=-1)[..., : shape[-1]]
    # Half a level everywhere, but for what lies as far out as the furthest number, on the side that has one level less.
    assert (np.abs(found - weight) <= scales * 1.0001).all()
    assert (np.abs(found - weight) <= scales * 0.5001).mean() > 0.9
    furthest = np.abs(weight[..., :32]).argmax(-1)[..., None]
    np.testing.assert_allclose(
        np.take_along_axis(found, furthest, -1), np.take_along_axis(weight, furthest, -1), rtol=1e-6
    )


def test_a_block_of_zeros_stays_zero():
    assert not restored(np.zeros((2, 32), np.float32), WeightBlocks(bits=4, size=32)).any()
