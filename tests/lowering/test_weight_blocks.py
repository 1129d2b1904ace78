"""Numbers in blocks of 8 or 4 bits."""

from __future__ import annotations

import numpy as np
import pytest

from qeff_framework.lowering import WeightBlocks
from qeff_framework.lowering import weight_blocks as module


def restored(weight: np.ndarray, blocks: WeightBlocks) -> np.ndarray:
    """What the levels, scales and zeros of `weight` stand for."""
    levels, scales, zeros = blocks.levels(weight), blocks.scales(weight), blocks.zeros(weight)
    assert levels.shape == (*scales.shape, blocks.bytes)
    assert zeros.shape == (*weight.shape[:-1], blocks.bytes_of_zeros(weight.shape[-1]))
    if blocks.bits == 4:
        levels, zeros = (
            np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1) for packed in (levels, zeros)
        )
    zeros = zeros[..., : scales.shape[-1], None].astype(np.float32)
    numbers = (levels.astype(np.float32) - zeros) * scales[..., None]
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


@pytest.mark.parametrize("fitted", [False, True])
def test_a_block_of_zeros_stays_zero(fitted):
    assert not restored(np.zeros((2, 32), np.float32), WeightBlocks(bits=4, size=32, fitted=fitted)).any()


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.88), (2.0, 0.4)])
def test_fitted_blocks_lose_less_and_most_where_numbers_lie_on_one_side(shift, share, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 700)
    weight = np.random.default_rng(0).standard_normal((60, 96)).astype(np.float32) + np.float32(shift)
    weight[0, :32], weight[1, :32] = 0.7, -0.7  # a block of one number, which is a level

    found = {fitted: restored(weight, WeightBlocks(bits=4, size=32, fitted=fitted)) for fitted in (True, False)}

    errors = {fitted: float(np.square(numbers - weight).mean()) for fitted, numbers in found.items()}
    assert errors[True] < share * errors[False]
    np.testing.assert_allclose(found[True][:2, :32], weight[:2, :32], rtol=1e-6)
