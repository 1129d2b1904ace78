"""Sines and cosines of positions become tables, computed here in float32 and looked up on the device.

Float16 holds whole numbers exactly only up to 2048. A device that computes ``cos(position * frequency)`` in float16 gets later
positions wrong, by whole radians for the fast frequencies. Of a table only the entries are rounded.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.contracts import PROMPT_LENGTHS
from qeff_framework.errors import CompileError
from qeff_framework.lowering.computation import Computation
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import nodes_of

_POSITIONS = "position_ids"


class RotaryTables(GraphPass):
    """Replaces each ``Cos`` and ``Sin`` of the main graph that depends on the positions alone, token by token.

    A table has `ctx_len` rows, one for each position of the context.
    """

    name = "RotaryTables"
    version = "2"

    def __init__(self, ctx_len: int) -> None:
        self._ctx_len = ctx_len

    def run(self, model: ir.Model) -> bool:
        """Says whether something was replaced. Raises `CompileError` where no table can hold the angles."""
        position_ids = next((value for value in model.graph.inputs if value.name == _POSITIONS), None)
        if position_ids is None or position_ids.shape is None or len(position_ids.shape) != 2:
            return False
        shared: dict[Hashable, Any] = {}
        tables = {node: self._table(node, position_ids) for node in nodes_of(model, "Cos", "Sin")}
        for node, table in tables.items():
            if table is not None:
                _look_up(GraphEditor(model, node, shared), node, table, position_ids)
        return any(table is not None for table in tables.values())

    def _table(self, node: ir.Node, position_ids: ir.Value) -> NDArray[np.float32] | None:
        """``[ctx_len, N]``, row p for position p; `None` when the output of `node` is no function of one position."""
        compute = Computation.of(node.outputs[0], [position_ids])
        if compute is None:
            _refuse_growing_frequencies(node)
            return None
        forward = np.arange(self._ctx_len, dtype=np.int64)[None]
        whole = compute({_POSITIONS: forward})
        if whole.ndim != 3 or whole.shape[:2] != forward.shape or whole.dtype != np.float32:
            return None
        # What depends on other tokens too, such as on the longest position so far, differs in one of these.
        backward = compute({_POSITIONS: forward[:, ::-1].copy()})[:, ::-1]
        half = max(1, self._ctx_len // 2)
        shorter = compute({_POSITIONS: forward[:, :half]})
        if not np.array_equal(whole, backward) or not np.array_equal(whole[:, :half], shorter):
            return None
        return np.ascontiguousarray(whole[0])


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


def _look_up(edit: GraphEditor, node: ir.Node, table: NDArray[np.float32], position_ids: ir.Value) -> None:
    # Padding has no row: it takes the first one, its results are not used.
    rows = edit.once("rows", lambda: edit.op("Max", position_ids, edit.int64(0)))
    edit.replace(node, edit.op("Gather", edit.array(table), rows, axis=0))
