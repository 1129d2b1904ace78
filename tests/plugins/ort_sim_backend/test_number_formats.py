"""The block formats against the definitions of the specification and against `ml_dtypes`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ort_sim_backend import number_formats as formats
from ort_sim_backend.number_formats import E2M3, INT8

#: Every pattern of the upper 16 bits of a float32, and its neighbours in the lower bits: all binades, subnormals, NaN, infinities.
PATTERNS = np.arange(1 << 16, dtype=np.uint32) << 16
NUMBERS = np.concatenate([(PATTERNS + low).view(np.float32) for low in (0, 1, 0x8000, 0x8001, 0xFFFF)])


def same(left, right):
    """Equal bit for bit; all NaN are one."""
    return np.array_equal(left, right, equal_nan=True) and np.array_equal(
        np.signbit(left) & ~np.isnan(left), np.signbit(right) & ~np.isnan(right)
    )


def test_every_code_of_e2m3_means_what_ml_dtypes_says():
    codes = np.arange(64, dtype=np.uint8)
    values = formats.e2m3_values(codes)

    assert same(values, codes.view(ml_dtypes.float6_e2m3fn).astype(np.float32))
    assert np.array_equal(formats.e2m3_codes(values), codes)
    assert same(E2M3.rounded(values), values)


def test_every_code_of_a_scale_means_what_ml_dtypes_says():
    codes = np.arange(256, dtype=np.uint8)

    assert same(formats.scale_values(codes), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


def test_every_code_of_int8_is_a_multiple_of_a_64th():
    codes = np.arange(256, dtype=np.uint8)
    values = formats.int8_values(codes)

    assert values.tolist() == [(code - 256 * (code > 127)) / 64 for code in range(256)]
    assert np.array_equal(formats.int8_codes(values), codes)
    unused = codes == 0x80  # -2: the range is symmetric
    assert same(INT8.rounded(values)[~unused], values[~unused])
    assert INT8.rounded(values)[unused] == -127 / 64


def test_numbers_round_to_the_element_that_ml_dtypes_takes():
    finite = NUMBERS[np.isfinite(NUMBERS)]

    assert same(E2M3.rounded(finite), finite.astype(ml_dtypes.float6_e2m3fn).astype(np.float32))
    clipped = np.clip(finite, -127 / 64, 127 / 64)
    assert same(INT8.rounded(finite), (np.rint(clipped.astype(np.float64) * 64) / 64).astype(np.float32))


@pytest.mark.parametrize(("element", "emax"), [(E2M3, 2), (INT8, 0)])
def test_blocks_follow_the_specification(element, emax):
    random = np.random.default_rng(0)
    # Every binade of float32 as the largest magnitude of a block.
    blocks = np.ldexp(random.uniform(-1, 1, (300, 32)), random.integers(-150, 128, (300, 1))).astype(np.float32)
    blocks[0], blocks[1], blocks[2], blocks[3] = 0, 2.0**-149, np.finfo(np.float32).max, 1 - 2.0**-24

    rounded = formats.round_mx(blocks, element)

    for block, result in zip(blocks.astype(np.float64), rounded, strict=True):
        amax = np.abs(block).max()
        exponent = -127 if amax == 0 else max(-127, int(np.floor(np.log2(amax))) - emax)
        if element is E2M3:
            elements = (block / 2.0**exponent).astype(np.float32).astype(ml_dtypes.float6_e2m3fn).astype(np.float64)
        else:
            elements = np.clip(np.rint(block / 2.0**exponent * 64), -127, 127) / 64
        assert same(result, (elements * 2.0**exponent).astype(np.float32))
        code = formats.scale_codes(block.astype(np.float32), element)
        assert code == np.float32(2.0**exponent).astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)


@pytest.mark.parametrize("element", [E2M3, INT8])
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_makes_its_block_nan_and_no_other(element, strange):
    numbers = np.ones((2, 96), np.float32)
    numbers[1, 40] = strange

    rounded = formats.round_mx(numbers, element)

    assert np.isnan(rounded[1, 32:64]).all()
    rounded[1, 32:64] = 1
    assert (rounded == 1).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_blocks_lie_along_the_axis_and_the_last_may_be_short(axis):
    numbers = np.random.default_rng(1).normal(size=(40, 70, 33)).astype(np.float32)

    rounded = formats.round_mxfp6(numbers, axis=axis)

    rows, rounded_rows = np.moveaxis(numbers, axis, -1), np.moveaxis(rounded, axis, -1)
    for start in range(0, rows.shape[-1], 32):
        part = rows[..., start : start + 32]
        filled = np.concatenate([part, np.zeros((*part.shape[:-1], 32 - part.shape[-1]), np.float32)], axis=-1)
        expected = formats.round_mxfp6(filled)[..., : part.shape[-1]]
        assert np.array_equal(rounded_rows[..., start : start + 32], expected)


def test_float16_is_that_of_numpy_and_overflows_to_infinity():
    numbers = NUMBERS[np.isfinite(NUMBERS)]
    rounded = formats.round_float16(numbers)

    assert np.array_equal(np.isinf(rounded), np.abs(numbers) >= 65520)
    nearest = np.abs(rounded) < 65504
    assert (np.abs(rounded - numbers)[nearest] <= np.maximum(np.abs(numbers[nearest]) * 2.0**-11, 2.0**-25)).all()
