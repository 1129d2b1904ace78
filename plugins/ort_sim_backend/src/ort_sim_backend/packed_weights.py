"""Weights in blocks go around ONNX Runtime's optimiser: it changes nothing about them, and would hold all of them in memory.

They are written to a file of their own, one after the other. The optimiser gets a graph that takes them as inputs; in the graph
that it returns they are initializers again, which lie in that file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ort_sim_backend.lowering.block_tables import LOOKUP
from qeff_framework.lowering import write_weights

#: Smaller ones stay with the other weights.
_SMALLEST_BYTES = 1 << 12
#: Inputs of the ops that take blocks: levels, scales and zeros.
_INPUTS = {"MatMulNBits": range(1, 4), "QMoE": range(2, 16), "Gather": range(1)}


def packed_weights(model: ir.Model) -> list[ir.Value]:
    """The initializers of the main graph that hold levels, scales or zeros of blocks, and are read as such alone."""
    found = []
    for value in model.graph.initializers.values():
        uses = list(value.uses())
        is_read_as_blocks = uses and all(index in _INPUTS.get(node.op_type, ()) for node, index in uses)
        is_packed = value.dtype == ir.DataType.UINT8 or any(
            node.op_type == "MatMulNBits" or LOOKUP in node.meta for node, _ in uses
        )
        tensor = value.const_value
        if is_read_as_blocks and is_packed and tensor is not None and tensor.nbytes >= _SMALLEST_BYTES:
            found.append(value)
    return found


def lookup_tables(values: Sequence[ir.Value]) -> list[ir.Value]:
    """Those of `packed_weights` of which nothing but rows is read."""
    return [value for value in values if all(LOOKUP in node.meta for node, _ in value.uses())]


def write_packed(values: Sequence[ir.Value], directory: Path, file_name: str) -> None:
    """Writes the content of `values` to a file, one tensor after the other.

    Raises:
        ArtifactError: the disk has too little space, before anything is written.
    """
    copies = [ir.Value(name=value.name, const_value=value.const_value) for value in values]
    holder = ir.Model(ir.Graph([], [], nodes=[], initializers=copies, name="weights"), ir_version=10)
    write_weights(holder, directory, file_name, inline_bytes=_SMALLEST_BYTES - 1)
    for value, copy in zip(values, copies, strict=True):
        value.const_value = copy.const_value


@contextmanager
def as_inputs(model: ir.Model, values: Sequence[ir.Value]) -> Iterator[None]:
    """While the body runs, the graph takes `values` as inputs."""
    graph = model.graph
    contents = [value.const_value for value in values]
    for value in values:
        del graph.initializers[str(value.name)]
        value.const_value = None
        graph.inputs.append(value)
    try:
        yield
    finally:
        for value, content in zip(values, contents, strict=True):
            graph.inputs.remove(value)
            value.const_value = content
            graph.register_initializer(value)


def put_back(path: Path, values: Sequence[ir.Value], tables: Collection[ir.Value]) -> list[dict[str, Any]]:
    """Makes the inputs of the model in `path` that have the names of `values` its initializers, with their content.

    Those of `tables` stay inputs as well, so that a session may pass what it has mapped. Returns where they lie in their file: by
    table its ``name``, ``offset`` in bytes, ``dtype`` and ``shape``.
    """
    model = ir.load(path)
    contents = {value.name: value.const_value for value in values}
    lookups = {value.name for value in tables}
    kept: list[ir.Value] = []
    places: list[dict[str, Any]] = []
    for value in list(model.graph.inputs):
        if value.name in contents:
            model.graph.inputs.remove(value)
            # What the optimiser has no use for is no input of the program either.
            if value.uses():
                value.const_value = contents[value.name]
                model.graph.register_initializer(value)
                if value.name in lookups:
                    places.append(_place(value))
                    kept.append(value)
    model.graph.inputs.extend(kept)
    ir.save(model, path)
    return places


def _place(value: ir.Value) -> dict[str, Any]:
    content = value.const_value
    if not isinstance(content, ir.ExternalTensor):
        raise TypeError(f"{value.name} lies in no file")
    return {
        "name": str(value.name),
        "offset": content.offset or 0,
        "dtype": str(content.dtype.numpy()),
        "shape": [int(size) for size in content.shape.numpy()],
    }
