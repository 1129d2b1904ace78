"""Rounding to the storage formats of the device: FP16, bfloat16, MXINT8 and MXFP6 (E2M3).

The MX formats follow the OCP Microscaling specification 1.0: blocks of 32 elements share a power of two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 32
# Smallest power of two that a shared scale (E8M0) can be.
_MIN_SHARED_EXPONENT = -127
_MXINT8_STEP = 2.0**-6
_MXINT8_MAX = 127
# E2M3: exponent bias 1, three mantissa bits, largest value 7.5, largest exponent 2.
_E2M3_MAX = 7.5
_E2M3_MAX_EXPONENT = 2
_E2M3_MANTISSA_STEPS = 8.0

FloatArray = NDArray[np.float32]


def round_to_float16(values: FloatArray) -> FloatArray:
    """Nearest FP16 values; magnitudes beyond 65504 become infinite, as on the device."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def round_to_bfloat16(values: FloatArray) -> FloatArray:
    """Nearest bfloat16 values, ties to even."""
    return bfloat16_from_bits(bfloat16_bits(values))


def bfloat16_bits(values: FloatArray) -> NDArray[np.uint16]:
    """The upper half of the float32 pattern after rounding to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def bfloat16_from_bits(bits: NDArray[np.uint16]) -> FloatArray:
    """Float32 values of bfloat16 patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantize_mxint8(values: FloatArray) -> tuple[FloatArray, NDArray[np.int8]]:
    """Round along the last axis to MXINT8.

    Returns:
        The rounded values and the element bytes, both in the shape of `values`. The shared exponents are not returned:
        hosts see mxint8 tensors as opaque bytes.
    """
    blocks, restore = _blocked(values)
    scale = _shared_scale(blocks, 0) * _MXINT8_STEP
    elements = np.clip(np.rint(blocks / scale), -_MXINT8_MAX, _MXINT8_MAX)
    return restore((elements * scale).astype(np.float32)), restore(elements).astype(np.int8)


def round_to_mxfp6(values: FloatArray, axis: int) -> FloatArray:
    """Round to MXFP6 with the blocks along `axis`, which is the axis that a matrix product sums over."""
    moved = np.moveaxis(values, axis, -1)
    blocks, restore = _blocked(moved)
    scale = _shared_scale(blocks, _E2M3_MAX_EXPONENT)
    scaled = blocks / scale
    exponent = np.clip(_exponent(np.abs(scaled)), 0, _E2M3_MAX_EXPONENT)
    step = np.exp2(exponent) / _E2M3_MANTISSA_STEPS
    elements = np.clip(np.rint(scaled / step) * step, -_E2M3_MAX, _E2M3_MAX)
    return np.ascontiguousarray(np.moveaxis(restore((elements * scale).astype(np.float32)), -1, axis))


class _Restore:
    """Undoes `_blocked`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def __call__(self, blocks: FloatArray) -> FloatArray:
        rows = blocks.reshape(*self._shape[:-1], -1)
        return np.ascontiguousarray(rows[..., : self._shape[-1]])


def _blocked(values: FloatArray) -> tuple[FloatArray, _Restore]:
    padding = -values.shape[-1] % _BLOCK
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)])
    return padded.reshape(*values.shape[:-1], -1, _BLOCK), _Restore(values.shape)


def _shared_scale(blocks: FloatArray, max_exponent: int) -> FloatArray:
    largest = np.max(np.abs(blocks), axis=-1, keepdims=True)
    exponent = np.maximum(_exponent(largest) - max_exponent, _MIN_SHARED_EXPONENT)
    return np.exp2(exponent).astype(np.float32)


def _exponent(magnitudes: FloatArray) -> FloatArray:
    """Floor of log2; 0 for zero and for values that are not finite."""
    usable = np.where((magnitudes > 0) & np.isfinite(magnitudes), magnitudes, 1)
    return (np.frexp(usable)[1] - 1).astype(np.float32)
