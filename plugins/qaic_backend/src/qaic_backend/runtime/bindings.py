"""What a compiled program takes and gives, read from its own description."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qaic_backend.runtime.modules import RuntimeModules
from qeff_framework.plugin_api import ExecutionError

Dims = tuple[int, ...]

#: Name of a type in the description, its number where a module does not have the name, and how the host carries it.
_TYPES = (
    ("FLOAT_TYPE", 0, np.float32),
    ("FLOAT_16_TYPE", 1, np.float16),
    ("INT8_Q_TYPE", 2, np.int8),
    ("UINT8_Q_TYPE", 3, np.uint8),
    ("INT16_Q_TYPE", 4, np.int16),
    ("INT32_Q_TYPE", 5, np.int32),
    ("INT32_I_TYPE", 6, np.int32),
    ("INT64_I_TYPE", 7, np.int64),
    ("INT8_TYPE", 8, np.int8),
)


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One input or output; its index is its place in every list of buffers."""

    name: str
    index: int
    is_input: bool
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class ProgramDescription:
    """The bindings in order, and for each specialization the dims of every binding."""

    bindings: tuple[Binding, ...]
    shapes: tuple[tuple[Dims, ...], ...]

    def bytes_of(self, index: int, shape: Sequence[Dims]) -> int:
        """Length of a binding's buffer in one of `shapes`."""
        return self.bindings[index].dtype.itemsize * math.prod(shape[index])


def read_description(modules: RuntimeModules, data: bytes) -> ProgramDescription:
    """Parses the serialized description of a program.

    Raises:
        ExecutionError: it has a type that the host cannot carry.
    """
    message = modules.messages.IoDesc()
    message.ParseFromString(data)
    types = {getattr(modules.messages, name, number): np.dtype(kind) for name, number, kind in _TYPES}
    output = getattr(modules.messages, "BUFFER_IO_TYPE_OUTPUT", 1)
    bindings = tuple(_binding(item, types, output) for item in message.selected_set.bindings)
    # With a single specialization the list is empty, and the bindings' own dims are the only ones.
    shapes = tuple(tuple(_dims(shape.dims) for shape in entry.shapes) for entry in message.allowed_shapes)
    return ProgramDescription(
        bindings=bindings, shapes=shapes or (tuple(_dims(item.dims) for item in message.selected_set.bindings),)
    )


def _binding(item: Any, types: Mapping[int, np.dtype[Any]], output: int) -> Binding:
    dtype = types.get(item.type)
    if dtype is None:
        raise ExecutionError(
            f"the program's '{item.name}' has the type number {item.type}, which NumPy has no form for"
        )
    return Binding(name=item.name, index=item.index, is_input=item.dir != output, dtype=dtype)


def _dims(dims: Sequence[int]) -> Dims:
    """Scalars travel as one element."""
    return tuple(int(dim) for dim in dims) or (1,)
