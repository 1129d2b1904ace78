"""Sines and cosines of positions become tables, computed here in float32 and looked up on the device.

Float16 holds whole numbers exactly only up to 2048. A device that computes ``cos(position * frequency)`` in float16 gets later
positions wrong, by whole radians for the fast frequencies. Of a table only the entries are rounded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.contracts import PROMPT_LENGTHS, Specialization
from qeff_framework.errors import CompileError
from qeff_framework.lowering.computation import Computation
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import nodes_of, readers

_POSITIONS: Final = "position_ids"
#: Inputs that tell the length of a text, and whose text that is.
_LENGTHS: Final = {PROMPT_LENGTHS: "text", "encoder_position_ids": "source", "attention_mask": "text"}
#: How the length that has to be smaller is called.
_SIZES: Final = {PROMPT_LENGTHS: "ctx_len", "encoder_position_ids": "encoder_seq_len", "attention_mask": "seq_len"}
#: Ops between an angle and the choice between short and long texts, and between that and the comparison with the limit.
_KEEPING_ANGLES: Final = ("Cast", "Expand", "Identity", "Mul", "Reshape", "Unsqueeze")
_KEEPING_TRUTH: Final = ("Expand", "Identity", "Unsqueeze")


class RotaryTables(GraphPass):
    """Replaces each ``Cos`` and ``Sin`` of the main graph that depends on the positions alone, token by token.

    A table has `ctx_len` rows, one for each position of the context. An encoder reads up to `source_len` tokens.
    """

    name = "RotaryTables"
    version = "3"

    def __init__(self, ctx_len: int, source_len: int = 0) -> None:
        self._ctx_len, self._source_len = ctx_len, source_len

    @classmethod
    def of(cls, specializations: Sequence[Specialization]) -> Self:
        """The pass for the longest texts of a program of any task."""

        def longest(size: str) -> int:
            return max((item.dims.get(size, item.dims.get("seq_len", 1)) for item in specializations), default=1)

        return cls(longest("ctx_len"), longest("encoder_ctx_len"))

    def run(self, model: ir.Model) -> bool:
        """Says whether something was replaced. Raises `CompileError` where no table can hold the angles."""
        position_ids = next(
            (each for each in model.graph.inputs if each.name == _POSITIONS and _has_two_axes(each)), None
        )
        shared: dict[Hashable, Any] = {}
        found = {node: self._angles(node, position_ids) for node in nodes_of(model, "Cos", "Sin")}
        for node, angles in found.items():
            if angles is not None and position_ids is not None:
                _look_up(GraphEditor(model, node, shared), node, angles, position_ids)
        return any(angles is not None for angles in found.values())

    def _angles(self, node: ir.Node, position_ids: ir.Value | None) -> NDArray[np.float32] | None:
        """What `node` computes of positions ``0 .. ctx_len - 1``; `None` when its output is no function of one position.

        The axes are those of the node's output for a batch of one: ``[1, ctx_len, N]``, or ``[ctx_len, 1, N]`` where every token
        is a row of its own.
        """
        compute = None if position_ids is None else Computation.of(node.outputs[0], [position_ids])
        if compute is None:
            self._refuse_growing_frequencies(node)
            return None
        forward = np.arange(self._ctx_len, dtype=np.int64)[None]
        half = forward[:, : max(1, self._ctx_len // 2)]
        # What depends on other tokens too, such as on the longest position so far, differs in one of these.
        whole, backward, shorter = (compute({_POSITIONS: each}) for each in (forward, forward[:, ::-1].copy(), half))
        if whole.ndim != 3 or whole.dtype != np.float32:
            return None
        if whole.shape[:2] not in (forward.shape, forward.shape[::-1]):
            return None
        axis = 1 if whole.shape[:2] == forward.shape else 0
        first = whole.take(range(half.size), axis)
        alone = np.array_equal(whole, np.flip(backward, axis)) and np.array_equal(first, shorter)
        return whole if alone else None

    def _refuse_growing_frequencies(self, node: ir.Node) -> None:
        """Raises `CompileError` if the angles depend on the length of the text too: a table would have a row for each pair."""
        read = set(_inputs_read(node))
        told_by = next((name for name in _LENGTHS if name in read), None)
        if told_by is None or not read <= {_POSITIONS, *_LENGTHS}:
            return
        longest = self._ctx_len if told_by == PROMPT_LENGTHS else self._source_len
        limit = _limit(node)
        if limit is not None and longest <= limit:
            return  # Computed, and never chosen.
        raise CompileError(
            f"the model's rotary frequencies grow with the length of the {_LENGTHS[told_by]} (dynamic NTK), and float16, in "
            "which the device would compute them, holds whole positions up to 2048 only; compile with "
            f"{_SIZES[told_by]} of at most {'' if limit is None else f'{limit}, '}the model's max_position_embeddings, up to "
            "which they stay the same, or choose another backend"
        )


def _has_two_axes(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2


def _inputs_read(node: ir.Node) -> Iterator[str]:
    """The names of the graph's inputs whose content, and not only whose shape, decides what `node` computes."""
    seen: set[ir.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen or current.op_type in ("Shape", "Size"):
            continue
        seen.add(current)
        for value in current.inputs:
            if value is not None and value.is_graph_input():
                yield str(value.name)
            elif value is not None and (producer := value.producer()) is not None:
                pending.append(producer)


def _limit(node: ir.Node) -> int | None:
    """Texts of up to so many tokens have other angles than those of `node`; `None` where nothing says so."""
    pending = list(readers(node.outputs[0]))
    while pending:
        current = pending.pop()
        if current.op_type == "Where":
            return _compared_with(current.inputs[0])
        if current.op_type in _KEEPING_ANGLES:
            pending.extend(readers(current.outputs[0]))
    return None


def _compared_with(condition: ir.Value | None) -> int | None:
    """The constant of the comparison ``lengths > constant`` behind a condition."""
    node = None if condition is None else condition.producer()
    while node is not None and node.op_type in _KEEPING_TRUTH:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "Greater" or node.inputs[1] is None:
        return None
    constant = ir.convenience.get_const_tensor(node.inputs[1])
    return None if constant is None else int(constant.numpy().item())


def _look_up(edit: GraphEditor, node: ir.Node, angles: NDArray[np.float32], position_ids: ir.Value) -> None:
    # Padding has no row: it takes the first one, its results are not used.
    rows = edit.once("rows", lambda: edit.op("Max", position_ids, edit.int64(0)))
    count, between, size = angles.shape
    table = np.ascontiguousarray(angles.reshape(-1, size))
    found = edit.op("Gather", edit.array(table), rows, axis=0)
    by_row = count > 1 and between == 1
    edit.replace(node, edit.op("Reshape", found, edit.int64s(-1, 1, size)) if by_row else found)
