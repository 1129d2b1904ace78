"""Builds the IO descriptor bytes of a program (row R6)."""

from __future__ import annotations

import math

from .api_schema import DIRECTIONS, message_classes
from .program_description import ProgramDescription


def io_descriptor_bytes(program: ProgramDescription) -> bytes:
    """Serialized `IoDesc`.

    Dims and size of a binding come from the entry in which that binding is largest, so that a buffer of that size serves
    every entry. `allowed_shapes` is empty for a program with one entry.
    """
    descriptor = message_classes()["IoDesc"]()
    descriptor.program_name = "standin"
    for io_set, name in ((descriptor.io_sets.add(), "default"), (descriptor.selected_set, "default")):
        io_set.name = name
        for index, binding in enumerate(program.bindings):
            dims = program.largest_dims(index)
            io_set.bindings.add(
                name=binding.name,
                index=index,
                type=binding.io_type,
                dir=DIRECTIONS["BUFFER_IO_TYPE_INPUT" if binding.is_input else "BUFFER_IO_TYPE_OUTPUT"],
                quant_scale=binding.scale,
                quant_offset=binding.offset,
                dims=dims,
                size=math.prod(dims) * binding.element_size,
                is_partial_buf_allowed=program.is_partial_allowed(index),
                is_valid=True,
            )
    if len(program.entries) > 1:
        for entry in program.entries:
            shapes = descriptor.allowed_shapes.add()
            for binding, dims in zip(program.bindings, entry.dims, strict=True):
                shapes.shapes.add(type=binding.io_type, dims=dims)
    serialized: bytes = descriptor.SerializeToString()
    return serialized
