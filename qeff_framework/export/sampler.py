"""The end of a causal LM's graph that chooses the next token on the device: no logits travel to the host.

It computes what Transformers' processors compute for a row, in their order: penalties, masks, temperature, top-k, top-p, min-p.
The host gives the settings of each row and, for sampling, random numbers; ``temperatures`` of 0 asks for the most likely token.
The names are those that hosts of this platform feed, see `contracts.SAMPLER_INPUTS`.

Candidates are the `SAMPLER_CANDIDATES` most likely tokens, most likely first. A draw takes the candidate with the greatest sum of
log-probability and Gumbel noise (the Gumbel-max trick), which draws each with its probability and needs no normalisation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import onnx_ir as ir
import onnx_ir.tape

from qeff_framework.contracts import (
    PROBABILITIES,
    SAMPLER_CANDIDATES,
    SAMPLER_INPUTS,
    TOKEN_BITMASKS,
    StateSpec,
)
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.interface import BATCH, FULL_BATCH, SEQ

#: Below every score, and finite in FP16.
_LOWEST = -65504.0
#: Random numbers are kept between these: 0 and 1, to which FP16 rounds, would be infinite noise. 2^-14 is its least normal one.
_LEAST_RANDOM, _GREATEST_RANDOM = 2.0**-14, 1 - 2.0**-11
#: Below this, log(1 - r) is taken from its series; FP16 cannot hold 1 - r closely enough.
_SMALL_RANDOM = 2.0**-5

_REPETITION = "past_repetition_penalty_buffer"
_PRESENCE = "past_presence_penalty_buffer"


def append_sampler(
    model: ir.Model, *, first_state: int, takes_masks: bool = False, returns_probabilities: bool = False
) -> tuple[StateSpec, ...]:
    """Ends `model` in ``next_tokens [B, 1, 1]`` instead of ``logits [B, 1, V]``; returns its two retained states.

    They are bool ``[B or F, V]``: ``past_repetition_penalty_buffer`` marks the tokens of prompt and answer,
    ``past_presence_penalty_buffer`` those of the answer. A row whose step begins at position 0 begins with empty marks.
    `first_state` is the number of the first input that is a state: the sampler's inputs are put before it. `takes_masks` adds the
    input `contracts.TOKEN_BITMASKS`, `returns_probabilities` the output `contracts.PROBABILITIES` behind the tokens.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    logits = model.graph.outputs[0]
    vocab = logits.shape[-1] if logits.shape is not None else None
    if not isinstance(vocab, int):
        raise UnsupportedModelError("the size of its vocabulary is not fixed, so no sampler can follow it")
    rows = FULL_BATCH if "batch_index" in inputs else BATCH
    fed = {name: _value(name, *_interface(min(vocab, SAMPLER_CANDIDATES))[name]) for name in SAMPLER_INPUTS}
    if takes_masks:
        fed[TOKEN_BITMASKS] = _value(TOKEN_BITMASKS, ir.DataType.BOOL, (BATCH, vocab))
    buffers = {name: _value(name, ir.DataType.BOOL, (rows, vocab)) for name in (_REPETITION, _PRESENCE)}

    write = _Writer()
    positions, batch_index = inputs["position_ids"], inputs.get("batch_index")
    is_first = write.op("Equal", write.op("Slice", positions, *write.ints([0], [1], [1])), write.int(0))
    is_token = write.op("GreaterOrEqual", positions, write.int(0))
    accepted = fed["last_accepted_output_tokens"]
    is_accepted = write.op("GreaterOrEqual", accepted, write.int(0))
    marked = {}
    for name, tokens, is_there in (
        (_REPETITION, inputs["input_ids"], is_token),
        (_PRESENCE, accepted, is_accepted),
    ):
        held = buffers[name]
        own = (
            held
            if batch_index is None
            else write.op("Gather", held, write.op("Squeeze", batch_index, *write.ints([1])))
        )
        marked[name] = _mark(write, own, tokens, is_there, is_first, vocab)

    scores = _penalized(write, write.op("Squeeze", logits, *write.ints([1])), fed, marked)
    if takes_masks:
        scores = write.op("Where", fed[TOKEN_BITMASKS], scores, write.float(_LOWEST))
    choice = _chosen(write, scores, fed, min(vocab, SAMPLER_CANDIDATES))
    result = write.op("Unsqueeze", choice.tokens, *write.ints([2]))
    _name(result, "next_tokens", ir.DataType.INT64, (BATCH, 1, 1))
    results = [result]
    if returns_probabilities:
        results.append(_probabilities(write, scores, choice))
        _name(results[-1], PROBABILITIES, ir.DataType.FLOAT, (BATCH, 1, vocab))

    states = []
    for name, held in buffers.items():
        new = marked[name] if batch_index is None else write.op("ScatterND", held, batch_index, marked[name])
        states.append(StateSpec(input=name, output=f"{name}_RetainedState", kind="sampler"))
        _name(new, states[-1].output, ir.DataType.BOOL, (rows, vocab))
        model.graph.outputs.append(new)
    model.graph.extend(write.nodes)
    model.graph.outputs[:1] = results
    for number, value in enumerate(fed.values()):
        model.graph.inputs.insert(first_state + number, value)
    model.graph.inputs.extend(buffers.values())
    return tuple(states)


def _interface(candidates: int) -> dict[str, tuple[ir.DataType, tuple[int | str, ...]]]:
    floats = ("repetition_penalties", "presence_penalties", "temperatures", "top_ps", "min_ps")
    return {
        "last_accepted_output_tokens": (ir.DataType.INT64, (BATCH, SEQ)),
        **dict.fromkeys(floats, (ir.DataType.FLOAT, (BATCH, 1))),
        "top_ks": (ir.DataType.INT32, (BATCH, 1)),
        "random_numbers": (ir.DataType.FLOAT, (BATCH, candidates)),
    }


def _mark(
    write: _Writer, own: ir.Value, tokens: ir.Value, is_there: ir.Value, is_first: ir.Value, vocab: int
) -> ir.Value:
    """The rows' marks ``[B, V]`` with those of ``tokens [B, S]`` added; padding marks a column behind the vocabulary."""
    kept = write.op("And", own, write.op("Not", is_first))
    wider = write.op("Concat", kept, is_first, axis=1)
    places = write.op("Where", is_there, tokens, write.int(vocab))
    marked = write.op("ScatterElements", wider, places, is_there, axis=1)
    return write.op("Slice", marked, *write.ints([0], [vocab], [1]))


def _penalized(write: _Writer, scores: ir.Value, fed: dict[str, ir.Value], marked: dict[str, ir.Value]) -> ir.Value:
    factor = fed["repetition_penalties"]
    is_positive = write.op("Greater", scores, write.float(0.0))
    repeated = write.op("Where", is_positive, write.op("Div", scores, factor), write.op("Mul", scores, factor))
    scores = write.op("Where", marked[_REPETITION], repeated, scores)
    return write.op("Where", marked[_PRESENCE], write.op("Sub", scores, fed["presence_penalties"]), scores)


class _Choice(NamedTuple):
    #: ``[B, 1]``.
    tokens: ir.Value
    #: ``[B, candidates]``, most likely first.
    ids: ir.Value
    #: ``[B, candidates]``: their scores, divided by the temperature.
    logs: ir.Value
    #: ``[B, candidates]``: top-k, top-p and min-p leave them.
    is_kept: ir.Value


def _chosen(write: _Writer, scores: ir.Value, fed: dict[str, ir.Value], candidates: int) -> _Choice:
    """The choice by ``scores [B, V]``."""
    is_sampled = write.op("Greater", fed["temperatures"], write.float(0.0))
    greedy = write.op("ArgMax", scores, axis=1, keepdims=1)
    values, ids = write.ops("TopK", 2, scores, *write.ints([candidates]), axis=1, largest=1, sorted=1)
    # Relative to the best candidate: its 0 stays exact in FP16 whatever the temperature is.
    best = write.op("Slice", values, *write.ints([0], [1], [1]))
    temperature = write.op("Where", is_sampled, fed["temperatures"], write.float(1.0))
    logs = write.op("Div", write.op("Sub", values, best), temperature)

    ranks = write.op("Constant", value=ir.tensor([list(range(candidates))], dtype=ir.DataType.INT32))
    in_top_k = write.op("Less", ranks, fed["top_ks"])
    if TOKEN_BITMASKS in fed:
        # A great temperature brings the lowest score near to the others.
        in_top_k = write.op("And", in_top_k, write.op("GatherElements", fed[TOKEN_BITMASKS], ids, axis=1))
    probabilities = write.op("Softmax", write.op("Where", in_top_k, logs, write.float(_LOWEST)), axis=1)
    # A token stays while those above it have less than top_p together. Rounding must not cut the tail when top_p is 1.
    above = write.op("CumSum", probabilities, write.int(1), exclusive=1)
    in_top_p = write.op(
        "Or",
        write.op("Less", above, fed["top_ps"]),
        write.op("GreaterOrEqual", fed["top_ps"], write.float(1.0)),
    )
    most = write.op("Slice", probabilities, *write.ints([0], [1], [1]))
    in_min_p = write.op("GreaterOrEqual", probabilities, write.op("Mul", fed["min_ps"], most))
    is_kept = write.op("And", write.op("And", in_top_k, in_top_p), in_min_p)
    noisy = write.op("Add", logs, _gumbel(write, fed["random_numbers"]))
    drawn = write.op("ArgMax", write.op("Where", is_kept, noisy, write.float(_LOWEST)), axis=1, keepdims=1)
    tokens = write.op("Where", is_sampled, write.op("GatherElements", ids, drawn, axis=1), greedy)
    return _Choice(tokens, ids, logs, is_kept)


def _probabilities(write: _Writer, scores: ir.Value, choice: _Choice) -> ir.Value:
    """``[B, 1, V]``: 0 for the tokens that cannot be drawn."""
    left = write.op("Softmax", write.op("Where", choice.is_kept, choice.logs, write.float(_LOWEST)), axis=1)
    left = write.op("Where", choice.is_kept, left, write.float(0.0))
    none = write.op("Expand", write.float(0.0), write.op("Shape", scores))
    return write.op("Unsqueeze", write.op("ScatterElements", none, choice.ids, left, axis=1), *write.ints([1]))


def _gumbel(write: _Writer, uniform: ir.Value) -> ir.Value:
    """Gumbel noise ``-log(-log(1 - r))``. Great noise, which decides, comes from small numbers: floats are dense there."""
    r = write.op("Clip", uniform, write.float(_LEAST_RANDOM), write.float(_GREATEST_RANDOM))
    exact = write.op("Neg", write.op("Log", write.op("Sub", write.float(1.0), r)))
    # -log(1 - r) = r + r^2/2 + r^3/3 + ...
    inner = write.op("Add", write.float(0.5), write.op("Div", r, write.float(3.0)))
    series = write.op("Mul", r, write.op("Add", write.float(1.0), write.op("Mul", r, inner)))
    is_small = write.op("Less", r, write.float(_SMALL_RANDOM))
    return write.op("Neg", write.op("Log", write.op("Where", is_small, series, exact)))


class _Writer:
    """Collects nodes."""

    def __init__(self) -> None:
        self._tape = ir.tape.Tape()

    @property
    def nodes(self) -> Any:
        return self._tape.nodes

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._tape.op(op_type, inputs, attributes)

    def ops(self, op_type: str, outputs: int, *inputs: ir.Value, **attributes: Any) -> Any:
        return self._tape.op_multi_out(op_type, inputs, attributes, num_outputs=outputs)

    def ints(self, *vectors: list[int]) -> list[ir.Value]:
        return [self.op("Constant", value_ints=vector) for vector in vectors]

    def int(self, value: int) -> ir.Value:
        return self.op("Constant", value_int=value)

    def float(self, value: float) -> ir.Value:
        return self.op("Constant", value_float=value)


def _value(name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _name(value: ir.Value, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
