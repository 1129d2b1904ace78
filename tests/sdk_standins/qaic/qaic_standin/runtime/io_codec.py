"""Converts between the host's bytes and the values that the reference graph computes with.

`to_device` and `from_device` are the only places where values change precision on their way in or out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..block_formats import (
    bfloat16_bits,
    bfloat16_from_bits,
    quantize_mxint8,
    round_to_bfloat16,
    round_to_float16,
)
from ..program_description import BFLOAT16, FLOAT, FLOAT16, INT8, MXINT8, Binding

Array = NDArray[np.generic]


class OpaqueDataError(ValueError):
    """The host gave data for a tensor whose format it cannot know."""


def to_device(binding: Binding, data: bytes, dims: tuple[int, ...], *, to_float16: bool) -> Array:
    """Values of a host buffer in the graph's type and layout, rounded as the program computes.

    Raises:
        OpaqueDataError: data other than zeros for an mxint8 tensor: its shared exponents never leave the device.
    """
    values = _decode(binding, data)
    if binding.channels_last:
        values = np.moveaxis(values.reshape(dims), -1, 1)
    elif binding.graph_rank == 0:
        values = values.reshape(())
    else:
        values = values.reshape(dims)
    return device_values(binding, values, to_float16=to_float16)


def device_values(binding: Binding, values: Array, *, to_float16: bool) -> Array:
    """Values after rounding to the binding's storage precision and, if so compiled, to FP16; type of the graph."""
    if binding.precision == FLOAT16 or (to_float16 and np.issubdtype(values.dtype, np.floating)):
        values = round_to_float16(values.astype(np.float32))
    if binding.precision == BFLOAT16:
        values = round_to_bfloat16(values.astype(np.float32))
    if binding.precision == MXINT8:
        values = quantize_mxint8(values.astype(np.float32))[0]
    return np.ascontiguousarray(values).astype(binding.graph_type, copy=False).reshape(values.shape)


def from_device(binding: Binding, values: Array) -> bytes:
    """The bytes that the host reads for values of the graph."""
    if binding.channels_last:
        values = np.moveaxis(values, 1, -1)
    return _encode(binding, np.ascontiguousarray(values))


def zeros(binding: Binding, dims: tuple[int, ...]) -> Array:
    """The state of a fresh activation, in the graph's layout."""
    if binding.channels_last:
        batch, *spatial, channels = dims
        dims = (batch, channels, *spatial)
    return np.zeros(() if binding.graph_rank == 0 else dims, dtype=binding.graph_type)


def _decode(binding: Binding, data: bytes) -> Array:
    match binding.precision:
        case "float":
            return np.frombuffer(data, np.float32)
        case "float16":
            return np.frombuffer(data, np.float16)
        case "bfloat16":
            return bfloat16_from_bits(np.frombuffer(data, np.uint16))
        case "int8":
            return (np.frombuffer(data, np.int8).astype(np.float32) - binding.offset) * np.float32(binding.scale)
        case "mxint8":
            elements = np.frombuffer(data, np.int8)
            if elements.any():
                raise OpaqueDataError(f"'{binding.name}' is mxint8: the host can only clear it")
            return elements.astype(np.float32)
        case _:
            return np.frombuffer(data, binding.graph_type)


def _encode(binding: Binding, values: Array) -> bytes:
    if binding.precision in (FLOAT, FLOAT16):
        with np.errstate(over="ignore"):
            return values.astype(np.float32 if binding.precision == FLOAT else np.float16).tobytes()
    if binding.precision == BFLOAT16:
        return bfloat16_bits(values.astype(np.float32)).tobytes()
    if binding.precision == INT8:
        scaled: NDArray[np.float32] = np.rint(values.astype(np.float32) / np.float32(binding.scale)) + binding.offset
        return np.clip(scaled, -128, 127).astype(np.int8).tobytes()
    if binding.precision == MXINT8:
        return quantize_mxint8(values.astype(np.float32))[1].tobytes()
    return values.tobytes()
