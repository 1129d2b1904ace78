"""Attention with its cache as one GroupQueryAttention: same numbers as the dialect, slot for slot."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings

from ort_sim_backend.lowering import GroupQueryAttention
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import STATES, attention_layer, lowered, op_types, parse, run, run_in_place, session
from tests.lowering.steps import Sequence, appended_texts, sequences

VARIANTS = {
    "plain": {},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "softcap": {"softcap": 0.7},
    "window and softcap": {"window": 2, "softcap": 1.5},
    "sinks": {"sinks": True},
}

PASSES = (GroupQueryAttention(), RemoveUnused())


@cache
def sessions(variant: str) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    model = attention_layer(**VARIANTS[variant])
    changed = lowered(model, PASSES)
    assert op_types(changed).count("GroupQueryAttention") == 1
    assert not [node for node in changed.graph if node.domain == "qeff"]
    assert not changed.functions
    return session(model), session(changed)


def fixed(capacity: int, *steps: list[list[int]]) -> Sequence:
    return Sequence(capacity=capacity, steps=tuple(np.array(step) for step in steps), seed=1)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60)
@given(sequences())
@example(fixed(8, [[0, 1, 2, 3], [0, 1, -1, -1]], [[4, 5, 6, 7], [2, -1, -1, -1]], [[-1], [3]]))  # as a prefill goes
@example(fixed(6, [[0, 1, 2, 3]], [[4, 5, -1, -1]]))  # the padded chunk would pass the end of the cache
@example(
    fixed(4, [[-1, -1, -1, -1], [-1, -1, -1, -1]], [[-1], [-1]])
)  # nothing but padding, chunk as long as the cache
@example(fixed(1, [[0]], [[-1]], [[0]]))
@example(fixed(9, [[7, 8, -1], [0, 1, 2]]))  # one row at the end, one at the start
def test_steps_equal_the_dialect(variant, sequence):
    sequence = sequence.with_padding_behind()
    portable, changed = sessions(variant)
    expected_states = sequence.states()
    room = max(step.shape[1] for step in sequence.steps)
    states = {name: with_room(buffer, room) for name, buffer in expected_states.items()}
    for number, position_ids in enumerate(sequence.steps):
        feeds = sequence.feeds(number)
        expected = run(portable, {**feeds, **expected_states})
        expected_states = {name: expected[output] for name, output in STATES.items()}

        attended = run_in_place(changed, feeds, states)["attended"]

        for name, buffer in states.items():
            np.testing.assert_array_equal(buffer, with_room(expected_states[name], room))
        assert np.isfinite(attended).all()
        row, token = np.nonzero(position_ids >= 0)
        np.testing.assert_allclose(attended[row, :, token], expected["attended"][row, :, token], rtol=1e-5, atol=1e-5)


@cache
def windowed_session(variant: str) -> ort.InferenceSession:
    changed = lowered(attention_layer(**VARIANTS[variant]), (GroupQueryAttention(ctx_len=99), RemoveUnused()))
    assert {value.shape[2] for value in changed.graph.inputs if value.name in STATES} == {VARIANTS[variant]["window"]}
    return session(changed)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "window" in name])
@settings(max_examples=60)
@given(texts=appended_texts())
@example(texts=fixed(9, [[0, 1, 2, 3], [0, -1, -1, -1]], [[4, 5, 6, 7], [-1] * 4], [[8], [1]], [[-1], [2]], [[0], [3]]))
def test_a_cache_of_the_window_gives_the_same(variant, texts):
    portable, changed = sessions(variant)[0], windowed_session(variant)
    expected_states = texts.states()
    states = {
        name: np.full_like(
            buffer, np.nan, shape=(texts.batch, buffer.shape[1], VARIANTS[variant]["window"], buffer.shape[3])
        )
        for name, buffer in expected_states.items()
    }
    for number, position_ids in enumerate(texts.steps):
        feeds = texts.feeds(number)
        expected = run(portable, {**feeds, **expected_states})
        expected_states = {name: expected[output] for name, output in STATES.items()}

        attended = run_in_place(changed, feeds, states)["attended"]

        assert np.isfinite(attended).all()
        row, token = np.nonzero(position_ids >= 0)
        np.testing.assert_allclose(attended[row, :, token], expected["attended"][row, :, token], rtol=1e-5, atol=1e-5)


def with_room(cache, room):
    """A cache with more slots, as the session has it."""
    return np.pad(cache, ((0, 0), (0, 0), (0, room), (0, 0)), constant_values=np.nan)


def test_a_chunk_without_room_is_refused():
    _, changed = sessions("plain")
    sequence = fixed(3, [[0, 1, 2, -1]])
    states = sequence.states()
    before = {name: buffer.copy() for name, buffer in states.items()}

    with pytest.raises(Exception, match="GroupQueryAttention"):
        run_in_place(changed, sequence.feeds(0), states)

    for name, buffer in states.items():
        np.testing.assert_array_equal(buffer, before[name])


def with_two_readers():
    """Two attentions over one cache, as in models whose layers share it."""
    model = attention_layer()
    first = next(node for node in model.graph if node.op_type == "Attention")
    second = onnx_ir.Node("qeff", "Attention", first.inputs, list(first.attributes.values()))
    total = onnx_ir.Node("", "Add", [first.outputs[0], second.outputs[0]])
    total.outputs[0].type, total.outputs[0].shape = first.outputs[0].type, first.outputs[0].shape
    model.graph.extend([second, total])
    model.graph.outputs[0] = total.outputs[0]
    return model


def with_keys_as_values():
    """An attention that reads one cache as both."""
    model = attention_layer()
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    attention.replace_input_with(2, attention.inputs[1])
    return model


def with_another_slot_order():
    model = attention_layer()
    (slots,) = [node for node in model.graph if node.op_type == "Range"]
    slots.replace_input_with(0, slots.inputs[2])
    return model


@pytest.mark.parametrize(
    "model",
    [
        attention_layer(chunk=4),
        attention_layer(scale=0.0),
        attention_layer(head_dim=12),
        with_two_readers(),
        with_keys_as_values(),
        with_another_slot_order(),
    ],
    ids=["chunked mask", "scale 0", "head size", "two readers", "keys are values", "slots not from 0"],
)
def test_what_the_kernel_cannot_do_is_left_alone(model):
    before = op_types(model)

    assert not GroupQueryAttention()(model)

    assert op_types(model) == before


@pytest.mark.parametrize(("window", "ctx_len"), [(0, None), (3, 9)], ids=["longer", "as short as a window"])
def test_what_another_attention_sees_is_measured_by_a_buffer_that_the_kernel_did_not_change(window, ctx_len):
    """The kernel's caches are longer than the context in a session, or shorter; a mask of their length fits no other cache."""
    layer = (
        "float[batch, 4, seq, 8] query, float[batch, 2, seq, 8] key, int64[batch, seq] position_ids,"
        "float[batch, 2, ctx, 8] past_key, float[batch, 2, ctx, 8] past_value, float[batch, 2, ctx, 8] shared_key,"
        "float[batch, 2, ctx, 8] shared_value"
    )
    model = parse(
        f"layers ({layer}) => (float[batch, 4, seq, 8] first, float[batch, 4, seq, 8] second, float[batch, 4, seq, 8] third,"
        "float[batch, 2, ctx, 8] new_key, float[batch, 2, ctx, 8] new_value,"
        "float[batch, 2, ctx, 8] new_shared_key, float[batch, 2, ctx, 8] new_shared_value)"
        "<int64 zero = {0}, int64 one = {1}> {"
        "new_key = qeff.KVUpdate (past_key, key, position_ids)"
        "new_value = qeff.KVUpdate (past_value, key, position_ids)"
        "new_shared_key = qeff.KVUpdate (shared_key, key, position_ids)"
        "new_shared_value = qeff.KVUpdate (shared_value, key, position_ids)"
        "size = Shape <start = 2, end = 3> (past_key)"
        "limit = Squeeze (size)"
        "slots = Range (zero, limit, one)"
        f"mask = qeff.CausalMask <window = {window}, chunk = 0> (position_ids, slots)"
        "first = qeff.Attention <scale: float = 0.4, softcap: float = 0.0> (query, new_key, new_value, mask)"
        "second = qeff.Attention <scale: float = 0.4, softcap: float = 0.0> (query, new_shared_key, new_shared_value, mask)"
        "third = qeff.Attention <scale: float = 0.5, softcap: float = 0.0> (query, new_shared_key, new_shared_value, mask)"
        "}"
    )
    changed = lowered(model, (GroupQueryAttention(ctx_len=ctx_len), RemoveUnused()))
    assert op_types(changed).count("GroupQueryAttention") == 1
    measured = {node.inputs[0].name for node in changed.graph if node.op_type == "Shape" and node.inputs[0] is not None}
    assert "past_key" not in measured
    assert measured & {"shared_key", "shared_value"}
