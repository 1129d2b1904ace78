"""An estimate of the memory a program takes on each device (row C21)."""

from __future__ import annotations

import math

import onnx

from ..program_description import MXINT8, ProgramDescription
from .data_types import FLOAT_TENSORS
from .errors import compile_failed
from .weights import matmul_weight_axes

# One SoC of an Ultra card has a quarter of the card's 128 GB.
DEFAULT_DEVICE_BYTES = 32 * 1024**3
_MXFP6_BITS = 6.25
_MXINT8_BYTES = 33 / 32


def check_memory(model: onnx.ModelProto, program: ProgramDescription, *, mxfp6_matmul: bool, limit: int) -> None:
    """Compare weights plus retained state, spread evenly over the devices, with `limit` bytes.

    Raises:
        CompileError: the estimate is over the limit.
    """
    total = _weight_bytes(model, program, mxfp6_matmul=mxfp6_matmul) + _state_bytes(program)
    needed = math.ceil(total / program.device_count)
    if needed > limit:
        raise compile_failed(f"Not enough device memory: {needed} bytes needed per device, {limit} available")


def _weight_bytes(model: onnx.ModelProto, program: ProgramDescription, *, mxfp6_matmul: bool) -> float:
    packed = matmul_weight_axes(model) if mxfp6_matmul else {}
    total = 0.0
    for tensor in model.graph.initializer:
        count = math.prod(tensor.dims)
        if tensor.name in packed:
            total += count * _MXFP6_BITS / 8
        elif tensor.data_type in FLOAT_TENSORS:
            is_wide = tensor.data_type == onnx.TensorProto.FLOAT and not program.convert_to_fp16
            total += count * (4 if is_wide else 2)
        else:
            total += count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return total


def _state_bytes(program: ProgramDescription) -> float:
    return sum(
        math.prod(program.largest_dims(index))
        * (_MXINT8_BYTES if binding.precision == MXINT8 else binding.element_size)
        for index, binding in enumerate(program.bindings)
        if binding.is_input and binding.is_retained
    )
