"""What the kernels of a program want of its retained states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import onnx_ir as ir

from ort_sim_backend.lowering.group_query_attention import is_windowed
from ort_sim_backend.lowering.step_rows import BATCH_INDEX, has_rows_of_step
from qeff_framework.lowering import readers
from qeff_framework.plugin_api import StateSpec

#: Kernels that write a result over one of their inputs when both have the same buffer: op type -> {input: output}.
_OVERWRITING = {"GroupQueryAttention": {3: 1, 4: 2}, "ScatterND": {0: 0}}


def states_updated_in_place(model: ir.Model, states: Sequence[StateSpec]) -> list[str]:
    """Input names of the states whose old and new value may share one buffer.

    That holds when the new value is the old one, or when it is written by an overwriting kernel and everything else that reads
    the old value must have run before that kernel because the kernel depends on it.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    return [state.input for state in states if _overwrites(inputs[state.input], outputs[state.output])]


def states_with_room(model: ir.Model, states: Sequence[StateSpec]) -> list[str]:
    """Input names of the caches whose kernel wants room for a whole chunk behind the first slot that it writes."""
    outputs = {value.name: value.producer() for value in model.graph.outputs}
    writers = {state.input: outputs[state.output] for state in states}
    return [name for name, writer in writers.items() if _is_attention(writer) and not is_windowed(writer)]


def states_of_rows(model: ir.Model, states: Sequence[StateSpec]) -> list[str]:
    """Input names of the states of which a step is given the rows that its batch index names."""
    if all(value.name != BATCH_INDEX for value in model.graph.inputs):
        return []
    inputs = {value.name: value for value in model.graph.inputs}
    return [state.input for state in states if has_rows_of_step(inputs[state.input])]


def states_of_windows(model: ir.Model, states: Sequence[StateSpec]) -> tuple[StateSpec, ...]:
    """The states, those that hold the last tokens of a row with the kind "window"."""
    writers = {value.name: value.producer() for value in model.graph.outputs}
    return tuple(
        replace(state, kind="window")
        if _is_attention(writer := writers[state.output]) and is_windowed(writer)
        else state
        for state in states
    )


def _is_attention(node: ir.Node | None) -> TypeGuard[ir.Node]:
    return node is not None and node.op_type == "GroupQueryAttention"


def _overwrites(old: ir.Value, new: ir.Value) -> bool:
    writer = new.producer()
    if writer is None:
        return False
    if writer.op_type == "Identity" and writer.inputs[0] is old:
        # Nothing is written: the kernel sees that both are one buffer.
        return True
    pairs = _OVERWRITING.get(writer.op_type, {})
    if not any(writer.inputs[source] is old and writer.outputs[target] is new for source, target in pairs.items()):
        return False
    return _depends_on(writer, readers(old) - {writer})


def _depends_on(node: ir.Node, others: set[ir.Node]) -> bool:
    """`node` is reached from every one of `others`. The search goes backwards and ends with the last of them."""
    missing, seen, frontier = set(others), {node}, [node]
    while missing and frontier:
        found = {producer for value in frontier.pop().inputs if value is not None and (producer := value.producer())}
        missing -= found
        frontier.extend(found - seen)
        seen |= found
    return not missing
