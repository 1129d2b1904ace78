"""Cache updates as ScatterND: exactly the named slots change."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings

from qeff_framework.contracts import Specialization
from qeff_framework.lowering import GatherRows, OneHotUpdates, RemoveUnused, ScatterUpdates, bind_sizes
from tests.lowering.graphs import (
    STATES,
    attention_layer,
    lowered,
    op_types,
    parse,
    run,
    run_in_place,
    session,
)
from tests.lowering.steps import sequences


@cache
def sessions(chunk: int) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    model = attention_layer(chunk=chunk)
    changed = lowered(model, (ScatterUpdates(), RemoveUnused()))
    assert op_types(changed).count("ScatterND") == 2
    assert "KVUpdate" not in {function.name for function in changed.functions.values()}
    return session(model), session(changed)


@cache
def one_hot_sessions(batch: int, seq: int, capacity: int) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    dims = {"batch_size": batch, "seq_len": seq, "ctx_len": capacity}
    model = bind_sizes(attention_layer(), Specialization(name="step", dims=dims))
    changed = lowered(model, (OneHotUpdates(), RemoveUnused()))
    assert not {"KVUpdate", "ScatterND"} & set(op_types(changed))
    return session(model), session(changed)


@settings(max_examples=25)
@given(sequences())
def test_a_product_with_a_one_hot_matrix_equals_the_dialect_and_padding_writes_nothing(sequence):
    positions = sequence.steps[0]
    portable, changed = one_hot_sessions(*positions.shape, sequence.capacity)
    feeds = {**sequence.feeds(0), **sequence.states()}
    expected = run(portable, feeds)
    padding = np.broadcast_to((positions < 0)[:, None, :, None], feeds["key"].shape)
    for name in ("key", "value"):
        feeds[name] = np.where(padding, np.inf, feeds[name]).astype(np.float32)

    found = run(changed, feeds)

    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 4])
@settings(max_examples=60)
@given(sequences())
def test_steps_equal_the_dialect(chunk, sequence):
    portable, changed = sessions(chunk)
    expected_states, states = sequence.states(), sequence.states()
    for number in range(len(sequence.steps)):
        feeds = sequence.feeds(number)
        expected = run(portable, {**feeds, **expected_states})
        expected_states = {name: expected[output] for name, output in STATES.items()}

        attended = run_in_place(changed, feeds, states)["attended"]

        for name, buffer in states.items():
            np.testing.assert_array_equal(buffer, expected_states[name])
        np.testing.assert_allclose(attended, expected["attended"], rtol=1e-6, atol=1e-6)


ROWS = """layer
    (int64[batch_size, seq_len] position_ids, int64[batch_size, 1] batch_index, float[batch_size, 2, seq_len, 8] key,
     float[batch_size, 2, seq_len, 8] value, float[rows, 2, ctx_len, 8] past_key, float[rows, 2, ctx_len, 8] past_value)
    => (float[batch_size, 2, ctx_len, 8] read, float[rows, 2, ctx_len, 8] past_key_RetainedState,
        float[rows, 2, ctx_len, 8] past_value_RetainedState)
    <int64 zero = {0}, int64 one = {1}>
{
    past_key_RetainedState = qeff.KVUpdateCB (past_key, key, position_ids, batch_index)
    past_value_RetainedState = qeff.KVUpdateCB (past_value, value, position_ids, batch_index)
    size = Shape <start = 2, end = 3> (past_key)
    limit = Squeeze (size)
    slots = Range (zero, limit, one)
    read = qeff.KVGatherCB (past_key_RetainedState, batch_index, slots)
}"""


@cache
def row_sessions() -> tuple[ort.InferenceSession, ort.InferenceSession]:
    model = parse(ROWS)
    slots = next(node for node in model.graph if node.op_type == "Range").outputs[0]
    slots.type, slots.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["ctx_len"])  # as the export has them
    changed = lowered(model, (ScatterUpdates(), GatherRows(), RemoveUnused()))
    assert op_types(changed).count("ScatterND") == 2
    assert not changed.functions
    return session(model), session(changed)


@settings(max_examples=60)
@given(sequences())
def test_rows_of_a_larger_cache_equal_the_dialect(sequence):
    portable, changed = row_sessions()
    rng = np.random.default_rng(sequence.seed)
    more = {name: np.concatenate([state, state * 2]) for name, state in sequence.states().items()}
    expected_states, states = dict(more), {name: state.copy() for name, state in more.items()}
    for number in range(len(sequence.steps)):
        feeds = {name: value for name, value in sequence.feeds(number).items() if name != "query"}
        feeds["batch_index"] = rng.permutation(2 * sequence.batch)[: sequence.batch, None]
        expected = run(portable, {**feeds, **expected_states})
        expected_states = {name: expected[output] for name, output in STATES.items()}

        read = run_in_place(changed, feeds, states)["read"]

        for name, buffer in states.items():
            np.testing.assert_array_equal(buffer, expected_states[name])
        np.testing.assert_array_equal(read, expected["read"])
