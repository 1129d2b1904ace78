"""Sines and cosines of positions become tables, computed here in float32 and looked up on the NPU.

The NPU computes in float16, which holds whole numbers exactly only up to 2048. Angles that it computes itself are wrong by
0.29 in the cosine at position 512 and by 0.95 at position 2048; of a table only the entries are rounded.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qeff_framework.plugin_api import CompileError
from qnn_backend.htp.lowering.graph import Writer, graph_of, known_sizes, standard_nodes

POSITIONS = "position_ids"
#: Tokens of each row's prompt; there where rotary frequencies depend on the length of the text.
PROMPT_LENGTHS = "prompt_lengths"
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
        positions = next((value for value in model.graph.inputs if value.name == POSITIONS), None)
        if positions is None or len(known_sizes(positions)) != 2:
            return False
        rows: ir.Value | None = None
        replaced = False
        for node in standard_nodes(model, "Cos", "Sin"):
            needed = _nodes_between(node, positions)
            table = None if needed is None else self._table(node, needed)
            if table is None:
                _refuse_growing_frequencies(node)
                continue
            write = Writer(model, node)
            if rows is None or not _is_before(rows, node):
                # Padding has no row: it takes the first, its results are not used.
                shape = known_sizes(positions)
                rows = write.op(
                    "Max", positions, write.array(np.array(0, np.int64)), shape=shape, dtype=ir.DataType.INT64
                )
            shape = (*known_sizes(positions), table.shape[1])
            write.replace(node, write.op("Gather", write.array(table), rows, axis=0, shape=shape))
            replaced = True
        return replaced

    def _table(self, node: ir.Node, needed: list[ir.Node]) -> NDArray[np.float32] | None:
        """Row p is what `node` gives for position p; `None` when its output is no function of one position."""
        forward = np.arange(self._ctx_len, dtype=np.int64)[None]
        whole = _evaluate(node, needed, forward)
        if whole.ndim != 3 or whole.shape[:2] != forward.shape or whole.dtype != np.float32:
            return None
        # Something that depends on other tokens too, such as on the longest position so far, differs in one of these.
        backward = _evaluate(node, needed, forward[:, ::-1].copy())[:, ::-1]
        half = max(1, self._ctx_len // 2)
        shorter = _evaluate(node, needed, forward[:, :half])
        if not np.array_equal(whole, backward) or not np.array_equal(whole[:, :half], shorter):
            return None
        return np.ascontiguousarray(whole[0])


def _is_before(value: ir.Value, node: ir.Node) -> bool:
    producer = value.producer()
    graph = graph_of(node)
    return producer is not None and graph.index(producer) < graph.index(node)


def _nodes_between(node: ir.Node, positions: ir.Value) -> list[ir.Node] | None:
    """What `node` needs, itself included, in graph order; `None` unless it reads positions and constants and nothing else."""
    found: set[ir.Node] = set()
    pending, reads_positions = [node], False
    while pending:
        current = pending.pop()
        if current in found:
            continue
        if current.domain or len(found) >= _MAX_NODES or _has_subgraph(current):
            return None
        found.add(current)
        for value in current.inputs:
            if value is None:
                continue
            if value is positions:
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


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _evaluate(node: ir.Node, needed: list[ir.Node], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    weights = {
        str(value.name): value.const_value.numpy()
        for other in needed
        for value in other.inputs
        if value is not None and value.producer() is None and value.const_value is not None
    }
    output = str(node.outputs[0].name)
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(other) for other in needed],
        "positions",
        [onnx.helper.make_tensor_value_info(POSITIONS, onnx.TensorProto.INT64, [None, None])],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(content, name) for name, content in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    result: NDArray[np.float32] = ReferenceEvaluator(model).run(None, {POSITIONS: positions})[0]
    return result
