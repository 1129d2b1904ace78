"""Attention block by block, and with replicated heads, computes what the dialect says."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from onnx_ir.passes.common import ShapeInferencePass

from qeff_framework.errors import CompileError
from qeff_framework.lowering import (
    FLOAT16_MIN,
    AttentionOps,
    BlockedAttention,
    InlineDialect,
    MaskPolicy,
    ReplicateKVHeads,
    bind_sizes,
)
from qeff_framework.plugin_api import Specialization
from tests.lowering.graphs import HEAD_DIM, KEY_HEADS, STATES, attention_layer, lowered, op_types, parse, run, session
from tests.lowering.steps import Sequence, sequences

FORMS = {
    "plain": {},
    "window": {"window": 2},
    "chunk": {"chunk": 3},
    "softcap and sinks": {"softcap": 2.0, "sinks": True},
}
POLICIES = [
    MaskPolicy(hidden=FLOAT16_MIN, clears_unseen=True),
    MaskPolicy(form="add", hidden=-1e4, clears_unseen=True),
]
LAYERS = {name: attention_layer(**form) for name, form in FORMS.items()}
ORIGINALS = {name: session(layer) for name, layer in LAYERS.items()}
REPLICATED = {name: session(lowered(layer, (ReplicateKVHeads(2),))) for name, layer in LAYERS.items()}
BLOCKED = {
    (name, blocks): session(lowered(layer, (BlockedAttention(blocks, policy), InlineDialect())))
    for name, layer in LAYERS.items()
    for blocks, policy in zip((3, 4), POLICIES, strict=True)
}


@settings(max_examples=40)
@given(sequences())
def test_steps_over_a_cache_equal_the_dialect(sequence: Sequence):
    """Chunks, padding, idle rows, blocks without a token that is seen, and whatever lies in slots that were never written."""
    for name, original in ORIGINALS.items():
        changed = {f"{blocks} blocks": session for (form, blocks), session in BLOCKED.items() if form == name}
        changed = {key: one for key, one in changed.items() if sequence.capacity >= int(key[0])}
        states = {key: sequence.states() for key in (*changed, "")}
        wide = {state: np.repeat(array, 2, axis=1) for state, array in sequence.states().items()}
        for number in range(len(sequence.steps)):
            feeds = sequence.feeds(number)
            expected = run(original, {**feeds, **states[""]})
            for key, one in changed.items():
                found = run(one, {**feeds, **states[key]})
                np.testing.assert_allclose(found["attended"], expected["attended"], rtol=1e-4, atol=1e-5)
                states[key] = {state: found[output] for state, output in STATES.items()}
            found = run(REPLICATED[name], {**feeds, **wide})
            np.testing.assert_allclose(found["attended"], expected["attended"], rtol=1e-5, atol=1e-6)
            for state, output in STATES.items():
                np.testing.assert_array_equal(found[output], np.repeat(expected[output], 2, axis=1))
                wide[state], states[""][state] = found[output], expected[output]


def biased_layer(rows: str = "B") -> onnx_ir.Model:
    """Attention with a bias over caches of 7 slots, read at some positions; of continuous batching where `rows` is F."""
    cb = rows != "B"
    update, read = ("KVUpdateCB", "KVGatherCB") if cb else ("KVUpdate", "KVGather")
    index, more = (", batch_index", "int64[B, 1] batch_index,") if cb else ("", "")
    layer = parse(
        f"layer (int64[B, S] position_ids, {more} int64[L] slots, float[B, 4, S, 8] query, float[B, 2, S, 8] key,"
        f" float[B, 2, S, 6] value, float[{rows}, 2, 7, 8] past_key, float[{rows}, 2, 7, 6] past_value,"
        f" float[1, 4, S, L] bias) => (float[B, 4, S, 6] attended, float[{rows}, 2, 7, 8] new_key, float[{rows}, 2, 7, 6] new_value)"
        "{"
        f" new_key = qeff.{update} (past_key, key, position_ids{index})"
        f" new_value = qeff.{update} (past_value, value, position_ids{index})"
        f" keys = qeff.{read} (new_key{index}, slots)"
        f" values = qeff.{read} (new_value{index}, slots)"
        " attended = qeff.AttentionBias <scale: float = 0.4> (query, keys, values, bias)"
        "}"
    )
    # As in an export, every value has a shape.
    ShapeInferencePass()(layer)
    return layer


@pytest.mark.parametrize("rows", ["B", "F"])
def test_a_bias_that_hides_whole_blocks_and_reads_of_some_rows_and_slots(rows: str):
    random = np.random.default_rng(0)
    bias = random.standard_normal((1, 4, 2, 5)).astype(np.float32)
    bias[:, :, 0, 2:], bias[:, :, 1, :3] = -np.inf, np.finfo(np.float32).min
    shapes = {"query": (2, 4, 2, 8), "key": (2, 2, 2, 8), "value": (2, 2, 2, 6)}
    count = 2 if rows == "B" else 3
    shapes |= {"past_key": (count, 2, 7, 8), "past_value": (count, 2, 7, 6)}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds |= {"position_ids": np.array([[3, 4], [0, -1]]), "slots": np.array([0, 1, 2, 3, 4]), "bias": bias}
    if rows == "F":
        feeds["batch_index"] = np.array([[2], [0]])
    model = biased_layer(rows)
    expected = run(session(model), feeds)
    policy = MaskPolicy(clears_unseen=False)

    for passes in ((), (ReplicateKVHeads(2),)):
        changed = lowered(model, (*passes, BlockedAttention(3, policy), AttentionOps(policy)))
        assert not {"AttentionBias", "Softmax"} & set(op_types(changed))
        wide = {
            name: np.repeat(feeds[name], 2, axis=1) if passes else feeds[name] for name in ("past_key", "past_value")
        }
        found = run(session(lowered(changed, (InlineDialect(),))), {**feeds, **wide})
        np.testing.assert_allclose(found["attended"], expected["attended"], rtol=1e-4, atol=1e-5)


def test_what_is_computed_in_float16_neither_overflows_nor_loses_its_size():
    """4000 slots with values of 60 that a token sees alike: sums of 4000 and of 240 000."""
    layer = parse(
        "layer (int64[1, 1] position_ids, float16[1, 1, 1, 8] query, float16[1, 1, 1, 8] key, float16[1, 1, 4000, 8] past,"
        " bool[1, 1, 1, 4000] mask) => (float16[1, 1, 1, 8] attended, float16[1, 1, 4000, 8] new)"
        "{ new = qeff.KVUpdate (past, key, position_ids)"
        "  attended = qeff.Attention <scale: float = 0.001> (query, new, new, mask) }"
    )
    policy = MaskPolicy(hidden=FLOAT16_MIN, clears_unseen=False)
    changed = lowered(layer, (BlockedAttention(4, policy), InlineDialect()))
    ones = np.ones((1, 1, 1, 8), np.float16)
    feeds = {
        "position_ids": np.array([[0]]),
        "query": ones,
        "key": 60 * ones,
        "past": np.full((1, 1, 4000, 8), 60, np.float16),
        "mask": np.ones((1, 1, 1, 4000), bool),
    }
    np.testing.assert_allclose(run(session(changed), feeds)["attended"], 60 * ones, rtol=2e-3)


def test_what_cannot_be_changed_is_refused_by_name_and_what_has_no_cache_is_left():
    layer = LAYERS["plain"]
    shapes = [Specialization(name="decode", dims={"batch_size": 1, "seq_len": 1, "ctx_len": 5})]
    with pytest.raises(
        CompileError, match=r"num_kv_blocks=6 is more than the 5 cache slots that specialization 'decode'"
    ):
        lowered(layer, (BlockedAttention(6, MaskPolicy(), shapes),))
    with pytest.raises(CompileError, match=r"replicate_kv_heads=3: the 4 query heads .* the factors that fit divide 2"):
        lowered(layer, (ReplicateKVHeads(3),))
    read_elsewhere = parse(
        "layer (int64[B, S] position_ids, float[B, 4, S, 8] query, float[B, 2, S, 8] key, float[B, 2, C, 8] past,"
        " bool[B, 1, S, C] mask) => (float[B, 4, S, 8] attended, float[B, 2, C, 8] new, float[B, 2, C, 1] total)"
        "{ new = qeff.KVUpdate (past, key, position_ids)  axis = Constant <value_ints = [3]> ()"
        "  total = ReduceSum (new, axis)"
        "  attended = qeff.Attention <scale: float = 0.4> (query, new, new, mask) }"
    )
    with pytest.raises(CompileError, match="ReduceSum has a cache that is not read by attention alone"):
        lowered(read_elsewhere, (ReplicateKVHeads(2),))

    own_code = parse(
        "layer (int64[B, S] position_ids, float[B, 2, S, 8] key, float[B, 2, C, 8] past) => (float[B, 2, C, 8] new, float[B, 2, C, 8] y)"
        "{ new = qeff.KVUpdate (past, key, position_ids)  y = Softmax (new) }"
    )
    for each, name in (
        (BlockedAttention(2, MaskPolicy()), "num_kv_blocks"),
        (ReplicateKVHeads(2), "replicate_kv_heads"),
    ):
        with pytest.raises(CompileError, match=f"{name}=2: the caches of this model are not read by the op Attention"):
            lowered(own_code, (each,))

    encoder = parse(
        "layer (float[B, 4, S, 8] query, float[B, 2, S, 8] key, bool[B, 1, S, S] mask) => (float[B, 4, S, 8] attended)"
        "{ attended = qeff.Attention <scale: float = 0.4> (query, key, key, mask) }"
    )
    for each in (BlockedAttention(6, MaskPolicy(), shapes), ReplicateKVHeads(3)):
        assert not each(lowered(encoder, ()))


def test_a_static_graph_reads_its_blocks_at_constant_positions():
    dims = {"batch_size": 1, "seq_len": 1, "ctx_len": 8}
    static = bind_sizes(LAYERS["plain"], Specialization(name="decode", dims=dims))
    assert BlockedAttention(2, MaskPolicy(clears_unseen=False))(static)
    gathers = [node for node in static.graph if node.op_type == "KVGather"]
    assert [gather.inputs[1].const_value.numpy().tolist() for gather in gathers[::2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert {tuple(gather.outputs[0].shape) for gather in gathers} == {(1, KEY_HEADS, 4, HEAD_DIM)}
