"""Weights in blocks go around ONNX Runtime's optimiser: it changes nothing about them, and would hold all of them in memory.

They are written to a file of their own, one after the other. The optimiser gets a graph that takes them as inputs; in the graph
that it returns they are initializers again, which lie in that file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ort_sim_backend.lowering.block_tables import LOOKUP
from ort_sim_backend.table_tail import cut_off
from qeff_framework.lowering import write_weights

#: Smaller ones stay with the other weights.
_SMALLEST_BYTES = 1 << 12
#: Inputs of the ops that take blocks: levels, scales and zeros.
_INPUTS = {
    "MatMulNBits": range(1, 4),
    "MatMulIntegerToFloat": range(1, 2),
    "QMoE": range(2, 16),
    "Gather": range(1),
}


def packed_weights(model: ir.Model) -> list[ir.Value]:
    """The initializers of the main graph that hold levels, or scales or zeros of blocks, and are read as such alone."""
    found = []
    for value in model.graph.initializers.values():
        uses = list(value.uses())
        is_read_as_blocks = uses and all(index in _INPUTS.get(node.op_type, ()) for node, index in uses)
        is_packed = value.dtype in (ir.DataType.UINT8, ir.DataType.INT8) or any(
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


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Where the tables lie whose rows a session looks up: by table its ``offset`` in the file, its ``dtype`` and ``shape``."""

    #: Passed as a whole: with the ``name`` of the input.
    mapped: Sequence[dict[str, Any]]
    #: Of which rows are passed: with the input that takes the ``rows``, and the one of the step that has their ``numbers``.
    read: Sequence[dict[str, Any]]
    #: The small model behind the other one, see `cut_off`; empty where there is none.
    tail: dict[str, Any]


def put_back(
    path: Path, values: Sequence[ir.Value], tables: Collection[ir.Value], states: Collection[str], tail_file: str
) -> Tables:
    """Makes the inputs of the model in `path` that have the names of `values` its initializers, with their content.

    Rows whose numbers are an input of the model become an input, so that no table is mapped for them; where the step chooses them
    itself, what it does with them goes into `tail_file`. Those of `tables` that are still read stay inputs as well, so that a
    session may pass what it has mapped.
    """
    model = ir.load(path)
    contents = {value.name: value.const_value for value in values}
    lookups = {value.name for value in tables}
    kept: list[ir.Value] = []
    mapped: list[ir.Value] = []
    read: list[dict[str, Any]] = []
    for value in [value for value in model.graph.inputs if value.name in contents]:
        model.graph.inputs.remove(value)
        value.const_value = contents[value.name]
        for rows, numbers in _rows_read(model, value):
            read.append({**_place(value), "rows": rows.name, "numbers": numbers.name})
            kept.append(rows)
        # What has no reader is no input of the program either.
        if value.uses():
            model.graph.register_initializer(value)
            if value.name in lookups:
                mapped.append(value)
    places = {str(value.name): _place(value) for value in mapped}
    if (cut := cut_off(model, mapped, states)) is not None:
        small, tail = cut
        ir.save(small, path.with_name(tail_file))
        for value in mapped:
            del model.graph.initializers[str(value.name)]
        found = [{**places[each["table"]], **each} for each in tail["rows"]]
        tail, mapped = {**tail, "model": tail_file, "rows": found}, []
    model.graph.inputs.extend([*kept, *mapped])
    ir.save(model, path)
    return Tables(
        mapped=[{**places[str(value.name)], "name": str(value.name)} for value in mapped],
        read=read,
        tail={} if cut is None else tail,
    )


def _rows_read(model: ir.Model, table: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Takes out the nodes that read rows of `table` whose numbers are an input: what has the rows now, and the numbers."""
    for node in [node for node, _ in table.uses()]:
        if node.graph is not model.graph or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        numbers, rows = node.inputs[1], node.outputs[0]
        if numbers is None or not numbers.is_graph_input() or numbers.shape is None or table.shape is None:
            continue
        taken = ir.Value(name=f"{table.name}_rows_{numbers.name}", type=table.type)
        taken.shape = ir.Shape((*numbers.shape, *table.shape[1:]))
        rows.replace_all_uses_with(taken)
        model.graph.remove(node, safe=True)
        yield taken, numbers


def _place(value: ir.Value) -> dict[str, Any]:
    content = value.const_value
    if not isinstance(content, ir.ExternalTensor):
        raise TypeError(f"{value.name} lies in no file")
    return {
        "offset": content.offset or 0,
        "dtype": str(content.dtype.numpy()),
        "shape": [int(size) for size in content.shape.numpy()],
    }
