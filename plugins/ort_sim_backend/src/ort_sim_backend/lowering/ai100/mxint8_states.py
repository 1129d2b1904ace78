"""What is written into retained states becomes numbers of MXINT8, in blocks of 32 along the last axis, the head size.

A token's numbers are rounded when it is written, and read back rounded by the step that writes it as by later ones.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ort_sim_backend.number_formats import BLOCK_SIZE, INT8
from qeff_framework.lowering import GraphEditor, GraphPass, KVUpdateNode, dialect_nodes, static_dim
from qeff_framework.plugin_api import CompileError

_RETAINED = "_RetainedState"
#: Exponents of the numbers of FP16, which is what the states hold: floor(log2) of the smallest and of the largest.
_LOWEST, _HIGHEST = -24, 15
_POWERS = np.ldexp(np.float32(1), np.arange(_LOWEST, _HIGHEST + 1)).astype(np.float32)
#: Steps between the elements of a block, by the number of powers of two that its largest magnitude reaches. A block of zeros
#: reaches none, and any step does for it.
_STEPS = np.concatenate([np.ones(1, np.float32), np.ldexp(_POWERS, -INT8.fraction_bits)])


class MXINT8States(GraphPass):
    """Rounds the updates of each cache, and the whole of each state that is written in another way.

    The numbers must be those of FP16: an exponent is found by comparing with the powers of two of that format, which is exact
    where a logarithm is not, and every result is a number of FP16 again.
    """

    name = "MXINT8States"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a state of numbers was found."""
        updates = dialect_nodes(model, KVUpdateNode)
        for update in updates:
            position = next(number for number, value in enumerate(update.node.inputs) if value is update.updates)
            update.node.replace_input_with(position, _rounded(GraphEditor(model, update.node), update.updates))
        written = {update.output for update in updates}
        others = [
            (number, value)
            for number, value in enumerate(model.graph.outputs)
            if str(value.name).endswith(_RETAINED) and value.dtype == ir.DataType.FLOAT and value not in written
        ]
        for number, value in others:
            _round_output(model, number, value)
        return bool(updates or others)


def _round_output(model: ir.Model, number: int, value: ir.Value) -> None:
    producer = value.producer()
    if producer is None:
        return  # a state that no step changes
    name, end = value.name, ir.node("Identity", [value])
    model.graph.append(end)
    value.name, end.outputs[0].name = f"{name}_before_rounding", name
    end.outputs[0].type, end.outputs[0].shape = value.type, value.shape
    model.graph.outputs[number] = end.outputs[0]
    end.replace_input_with(0, _rounded(GraphEditor(model, end), value))


def _rounded(edit: GraphEditor, numbers: ir.Value) -> ir.Value:
    """`numbers` after they were stored in blocks along the last axis, in ops of float32 that are exact for them."""
    rank = 0 if numbers.shape is None else len(numbers.shape)
    length = static_dim(numbers, rank - 1) if rank else None
    if length is None:
        raise CompileError(f"mxint8_kv_cache: the last axis of {numbers.name} has no known size to be cut into blocks")
    blocks = -(-length // BLOCK_SIZE)
    padded = numbers
    if length % BLOCK_SIZE:
        padding = np.zeros(2 * rank, np.int64)
        padding[-1] = blocks * BLOCK_SIZE - length
        padded = edit.op("Pad", numbers, edit.array(padding), edit.array(np.array(0, np.float32)))
    leading = [0] * (rank - 1)
    cut = edit.reshape(padded, (*leading, blocks, BLOCK_SIZE))
    magnitudes = edit.op("Abs", cut)
    largest = edit.op("ReduceMax", magnitudes, edit.int64s(-1), keepdims=1)
    steps = edit.op("Gather", edit.array(_STEPS), _binade(edit, largest))
    levels = edit.op("Round", edit.op("Div", cut, steps))  # ties to even
    limit = INT8.largest * 2**INT8.fraction_bits
    bounded = edit.op("Clip", levels, edit.array(np.array(-limit, np.float32)), edit.array(np.array(limit, np.float32)))
    # NaN in a block with a number that is none, zero in all others.
    strange = edit.op(
        "ReduceSum", edit.op("Mul", cut, edit.array(np.array(0, np.float32))), edit.int64s(-1), keepdims=1
    )
    stored = edit.op("Add", edit.op("Mul", bounded, steps), strange)
    whole = edit.reshape(stored, (*leading, blocks * BLOCK_SIZE))
    if length % BLOCK_SIZE:
        whole = edit.op("Slice", whole, edit.int64s(0), edit.int64s(length), edit.int64s(-1))
    whole.type, whole.shape = numbers.type, numbers.shape
    return whole


def _binade(edit: GraphEditor, largest: ir.Value) -> ir.Value:
    """How many powers of two ``largest [...,1]`` reaches, ``[...,1]`` of int64. NaN reaches none, an infinity all."""
    reached = edit.op("GreaterOrEqual", largest, edit.array(_POWERS))
    return edit.op("ReduceSum", edit.cast(reached, ir.DataType.INT64), edit.int64s(-1), keepdims=1)
