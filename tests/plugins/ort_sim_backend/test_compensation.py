"""Rounding for the inputs that a product has."""

from __future__ import annotations

import numpy as np

from ort_sim_backend.compensation import compensated
from qeff_framework.lowering import WeightBlocks

FOUR_BITS = WeightBlocks(bits=4, size=32, fitted=True)


def numbers(blocks, rounded, length):
    """The weight ``[N, K]`` that packed blocks stand for."""
    levels = np.stack([rounded.levels & 15, rounded.levels >> 4], axis=-1).reshape(*rounded.scales.shape, blocks.size)
    zeros = np.stack([rounded.zeros & 15, rounded.zeros >> 4], axis=-1).reshape(len(levels), -1)
    zeros = zeros[:, : levels.shape[1], None]
    return ((levels.astype(np.float32) - zeros) * rounded.scales[..., None]).reshape(len(levels), -1)[:, :length]


def test_correlated_inputs_make_results_change_less_and_the_error_is_what_they_change():
    random = np.random.default_rng(0)
    length = 80  # the last block is half full
    weight = random.standard_normal((48, length)).astype(np.float32)
    inputs = (random.standard_normal((500, 12)) @ random.standard_normal((12, length))).astype(np.float32)
    inputs += 0.1 * random.standard_normal(inputs.shape).astype(np.float32)
    covariance = inputs.T @ inputs / len(inputs)

    rounded = compensated(weight, covariance, FOUR_BITS)

    def change(other):
        return float(np.square(inputs @ (other - weight).T).mean() / np.square(inputs @ weight.T).mean())

    plain = compensated(weight, np.eye(length, dtype=np.float32), FOUR_BITS)
    found = change(numbers(FOUR_BITS, rounded, length))
    assert found < 0.5 * change(numbers(FOUR_BITS, plain, length))
    np.testing.assert_allclose(rounded.error, found, rtol=0.02)


def test_inputs_that_say_nothing_leave_the_fitted_blocks():
    weight = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)

    for covariance in (np.eye(64, dtype=np.float32), np.zeros((64, 64), np.float32)):
        rounded = compensated(weight, covariance, FOUR_BITS)

        np.testing.assert_array_equal(rounded.levels, FOUR_BITS.levels(weight))
        np.testing.assert_array_equal(rounded.zeros, FOUR_BITS.zeros(weight))
        np.testing.assert_allclose(rounded.scales, FOUR_BITS.scales(weight), rtol=1e-6)
