"""Sines and cosines of positions become tables that are computed here and looked up on the device.

FP16 holds whole numbers exactly only up to 2048. A device that computes ``cos(position * frequency)`` in FP16 gets later
positions wrong, by whole radians for the fast frequencies. The tables are computed in float32 at compile time, one row for each
position of the context; only their results are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qaic_backend.lowering.graph import Writer, graph_of
from qeff_framework.plugin_api import CompileError

POSITIONS = "position_ids"
#: Tokens of each row's prompt; there where rotary frequencies depend on the length of the text.
PROMPT_LENGTHS = "prompt_lengths"
_TRIGONOMETRIC = ("Cos", "Sin")
#: More nodes than any position encoding needs: what is larger is something else.
_MAX_NODES = 64


class RotaryTables:
    """Replaces each ``Cos`` and ``Sin`` that depends on the positions alone, token by token."""

    name = "RotaryTables"
    version = "1"

    def __init__(self, ctx_len: int) -> None:
        self._ctx_len = ctx_len

    def __call__(self, model: ir.Model) -> bool:
        """Says whether something was replaced. Raises `CompileError` where no table can hold the angles."""
        position_ids = next((value for value in model.graph.inputs if value.name == POSITIONS), None)
        if position_ids is None or position_ids.shape is None or len(position_ids.shape) != 2:
            return False
        tables: dict[bytes, ir.Value] = {}
        rows: ir.Value | None = None
        replaced = False
        for node in [node for node in model.graph if node.op_type in _TRIGONOMETRIC and not node.domain]:
            table = self._table(node, position_ids)
            if table is None:
                _refuse_growing_frequencies(node)
                continue
            write = Writer()
            if rows is None:
                # Padding has no row: it takes the first, its results are not used.
                rows = write.op("Max", position_ids, write.int(0))
            content = table.tobytes()
            if content not in tables:
                tables[content] = _initializer(model, f"position_table_{len(tables)}", table)
            write.replace(node, write.op("Gather", tables[content], rows, axis=0))
            replaced = True
        return replaced

    def _table(self, node: ir.Node, position_ids: ir.Value) -> NDArray[np.float32] | None:
        """Row p is the output of `node` for position p; `None` when there is no such table."""
        needed = _ancestors(node, position_ids)
        if needed is None:
            return None
        forward = np.arange(self._ctx_len, dtype=np.int64)[None]
        result = _evaluate(node, needed, forward)
        backward = _evaluate(node, needed, forward[:, ::-1].copy())
        # A value that depends on other tokens as well, such as on the longest position so far, is no function of one position.
        half = _evaluate(node, needed, forward[:, : max(1, self._ctx_len // 2)])
        if result.ndim != 3 or result.shape[:2] != forward.shape:
            return None
        if not np.array_equal(result, backward[:, ::-1]) or not np.array_equal(result[:, : half.shape[1]], half):
            return None
        table: NDArray[np.float32] = np.ascontiguousarray(result[0])
        return table if table.dtype == np.float32 else None


def _ancestors(node: ir.Node, position_ids: ir.Value) -> list[ir.Node] | None:
    """The nodes that `node` needs, in order; `None` unless they read the positions and constants, and nothing else."""
    found: set[ir.Node] = set()
    pending, reads_positions = [node], False
    while pending:
        current = pending.pop()
        if current in found:
            continue
        if current.domain or len(found) >= _MAX_NODES or any(True for _ in _subgraphs(current)):
            return None
        found.add(current)
        for value in current.inputs:
            if value is None:
                continue
            if value is position_ids:
                reads_positions = True
            elif (producer := value.producer()) is not None:
                pending.append(producer)
            elif value.const_value is None:
                return None
    return [other for other in graph_of(node) if other in found] if reads_positions else None


def _refuse_growing_frequencies(node: ir.Node) -> None:
    """Raises `CompileError` if the angles depend on the length of the text too: a table would have a row for each pair."""
    found: set[ir.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in found:
            continue
        found.add(current)
        for value in current.inputs:
            if value is not None and value.is_graph_input() and value.name == PROMPT_LENGTHS:
                raise CompileError(
                    "the model's rotary frequencies grow with the length of the text (dynamic NTK), and float16, in which the "
                    "device would compute them, holds whole positions up to 2048 only; compile with a ctx_len of at most the "
                    "model's max_position_embeddings, up to which they stay the same, or choose another backend"
                )
            if value is not None and (producer := value.producer()) is not None:
                pending.append(producer)


def _subgraphs(node: ir.Node) -> list[ir.Attr]:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return [attribute for attribute in node.attributes.values() if attribute.type in kinds]


def _evaluate(node: ir.Node, needed: list[ir.Node], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    constants: Mapping[str, ir.Value] = {
        str(value.name): value
        for other in needed
        for value in other.inputs
        if value is not None and value.producer() is None and value.name != POSITIONS
    }
    output = str(node.outputs[0].name)
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(other) for other in needed],
        "positions",
        [onnx.helper.make_tensor_value_info(POSITIONS, onnx.TensorProto.INT64, [None, None])],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(value.const_value.numpy(), name)
            for name, value in constants.items()
            if value.const_value is not None
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    result: NDArray[np.float32] = ReferenceEvaluator(model).run(None, {POSITIONS: positions})[0]
    return result


def _initializer(model: ir.Model, name: str, content: NDArray[np.float32]) -> ir.Value:
    tensor = ir.Tensor(content, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(content.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value
