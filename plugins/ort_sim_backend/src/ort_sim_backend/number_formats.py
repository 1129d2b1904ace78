"""Number formats of Cloud AI 100: FP16, and the block formats MXFP6 (E2M3) and MXINT8.

Rules of the OCP Microscaling specification 1.0: 32 numbers of a block share a scale, a power of two with the exponent
``floor(log2(largest magnitude)) - emax``, where emax is the exponent of the format's largest element. An element is the number
over the scale, rounded to the nearest element, ties to even, and saturated. The scale is an E8M0 code: an exponent of -127 to
127, or NaN.

The specification leaves three things to the implementation. Here, a block with an infinity or a NaN has the scale NaN, so that
all of it is NaN; a block of zeros has the smallest scale; MXINT8 does not use the element -2, so that its range is symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]
Codes = NDArray[np.uint8]

#: Numbers that share a scale.
BLOCK_SIZE: Final = 32

#: E8M0: the exponent plus the bias.
SCALE_BIAS: Final = 127
#: The code of a scale that is no number.
NAN_SCALE: Final = 0xFF

#: Most numbers that are rounded at a time; a few times their size exists beside them.
_PIECE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ElementFormat:
    """Signed elements: floats with subnormals, or fixed point, which is a float with subnormals alone."""

    name: str
    #: Bits of a code, the sign included.
    bits: int
    #: Exponents of the smallest and of the largest binade.
    emin: int
    emax: int
    #: Bits of the fraction.
    fraction_bits: int
    #: Largest magnitude.
    largest: float

    def rounded(self, numbers: Numbers) -> Numbers:
        """The nearest elements, ties to even; beyond the largest one, that one. NaN stays NaN."""
        limited = np.clip(numbers, -self.largest, self.largest)
        steps = np.ldexp(np.float32(1), np.clip(_exponents(limited), self.emin, self.emax) - self.fraction_bits)
        return (np.rint(limited / steps) * steps).astype(np.float32)


#: 6 bits: 0, 0.125, ..., 1.875, 2, 2.25, ..., 7.5 and their negatives.
E2M3: Final = ElementFormat(name="E2M3", bits=6, emin=0, emax=2, fraction_bits=3, largest=7.5)
#: 8 bits with the implied scale 2^-6: multiples of 1/64 up to 127/64.
INT8: Final = ElementFormat(name="INT8", bits=8, emin=0, emax=0, fraction_bits=6, largest=127 / 64)


def e2m3_values(codes: Codes) -> Numbers:
    """The values of 6-bit codes: sign, two bits of exponent with bias 1, three bits of fraction."""
    sign, exponent, fraction = codes >> 5 & 1, (codes >> 3 & 3).astype(np.int32), (codes & 7).astype(np.float32) / 8
    magnitude = np.where(exponent == 0, fraction, np.ldexp(1 + fraction, np.maximum(exponent - 1, 0)))
    return np.where(sign == 1, -magnitude, magnitude).astype(np.float32)


def e2m3_codes(elements: Numbers) -> Codes:
    """The codes of numbers that are elements of E2M3."""
    exponents = np.clip(_exponents(elements), E2M3.emin, E2M3.emax)
    # In units of the binade's step a normal number is 8 to 15 and a subnormal 0 to 7: its lowest bits are the fraction.
    units = np.abs(np.ldexp(elements, 3 - exponents)).astype(np.uint8)
    magnitude = np.where(units < 8, units, (exponents + 1) << 3 | units & 7)
    return (np.signbit(elements).astype(np.uint8) << 5 | magnitude).astype(np.uint8)


def int8_values(codes: Codes) -> Numbers:
    """The values of MXINT8 elements: two's complement in units of 1/64."""
    return (codes.view(np.int8) / 64).astype(np.float32)


def int8_codes(elements: Numbers) -> Codes:
    """The codes of numbers that are elements of MXINT8."""
    return np.rint(elements * 64).astype(np.int8).view(np.uint8)


def scale_values(codes: Codes) -> Numbers:
    """The values of E8M0 codes."""
    return np.where(codes == NAN_SCALE, np.nan, np.ldexp(1.0, codes.astype(np.int32) - SCALE_BIAS)).astype(np.float32)


def scale_codes(blocks: Numbers, element: ElementFormat) -> Codes:
    """The E8M0 codes of the scales of ``blocks [..., block]``: ``[...]``."""
    largest = np.abs(blocks).max(axis=-1)
    codes = np.clip(_exponents(largest) - element.emax + SCALE_BIAS, 0, 2 * SCALE_BIAS)
    codes = np.where(largest == 0, 0, codes)
    return np.where(np.isfinite(largest), codes, NAN_SCALE).astype(np.uint8)


def round_mx(numbers: Numbers, element: ElementFormat, *, axis: int = -1) -> Numbers:
    """What `numbers` are after they were stored in blocks along `axis`. A last block that is not full is filled with zeros."""
    rows = np.moveaxis(numbers, axis, -1)
    length = rows.shape[-1]
    flat = rows.reshape(-1, length)
    result = np.empty(flat.shape, np.float32)
    step = max(1, _PIECE // max(1, length))
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        padded = np.zeros((len(part), -(-length // BLOCK_SIZE) * BLOCK_SIZE), np.float32)
        padded[:, :length] = part
        blocks = padded.reshape(len(part), -1, BLOCK_SIZE)
        result[start : start + step] = _round_blocks(blocks, element).reshape(padded.shape)[:, :length]
    return np.moveaxis(result.reshape(rows.shape), -1, axis)


def round_mxfp6(numbers: Numbers, *, axis: int = -1) -> Numbers:
    """What `numbers` are after they were stored as MXFP6 (E2M3)."""
    return round_mx(numbers, E2M3, axis=axis)


def round_mxint8(numbers: Numbers, *, axis: int = -1) -> Numbers:
    """What `numbers` are after they were stored as MXINT8."""
    return round_mx(numbers, INT8, axis=axis)


def round_float16(numbers: Numbers) -> Numbers:
    """The nearest numbers of FP16, ties to even; beyond 65504 infinities."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float16).astype(np.float32)


def _round_blocks(blocks: Numbers, element: ElementFormat) -> Numbers:
    scales = scale_values(scale_codes(blocks, element))[..., None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        # In float64: a number over the smallest scale may be no float32.
        elements = element.rounded((blocks / scales).astype(np.float32))
        return (elements * scales).astype(np.float32)


def _exponents(numbers: Numbers) -> NDArray[np.int32]:
    """``floor(log2(|x|))``, exactly. Of zeros and of what is not finite, numbers that mean nothing."""
    # What the C library's frexp says to a NaN depends on the processor.
    with np.errstate(invalid="ignore"):
        return np.frexp(numbers)[1].astype(np.int32) - 1
