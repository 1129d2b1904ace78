"""The ONNX bodies, run by ONNX Runtime, against the NumPy reference."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qeff_framework.dialect import reference
from qeff_framework.dialect.functions import functions
from qeff_framework.dialect.names import DOMAIN, ONNX_OPSET, VERSION, Activation, Gate

FLOAT, INT64, BOOL, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8

#: Element types and ranks of the inputs of each op, and of its output.
SIGNATURES = {
    "KVUpdate": ([(FLOAT, 4), (FLOAT, 4), (INT64, 2)], (FLOAT, 4)),
    "KVUpdateCB": ([(FLOAT, 4), (FLOAT, 4), (INT64, 2), (INT64, 2)], (FLOAT, 4)),
    "KVGather": ([(FLOAT, 4), (INT64, 1)], (FLOAT, 4)),
    "KVGatherCB": ([(FLOAT, 4), (INT64, 2), (INT64, 1)], (FLOAT, 4)),
    "CausalMask": ([(INT64, 2), (INT64, 1)], (BOOL, 4)),
    "Attention": ([(FLOAT, 4)] * 3 + [(BOOL, 4)], (FLOAT, 4)),
    "AttentionBias": ([(FLOAT, 4)] * 4, (FLOAT, 4)),
    "AttentionSinks": ([(FLOAT, 4)] * 3 + [(BOOL, 4), (FLOAT, 1)], (FLOAT, 4)),
    "RMSNorm": ([(FLOAT, 3), (FLOAT, 1)], (FLOAT, 3)),
    "MoE": ([(FLOAT, 2), (INT64, 2), (FLOAT, 2), (FLOAT, 3), (FLOAT, 3)], (FLOAT, 2)),
    "MoEBias": ([(FLOAT, 2), (INT64, 2), (FLOAT, 2), (FLOAT, 3), (FLOAT, 3), (FLOAT, 2), (FLOAT, 2)], (FLOAT, 2)),
    "QuantizedMoE": ([(FLOAT, 2), (INT64, 2), (FLOAT, 2), *[(UINT8, 4), (FLOAT, 3), (UINT8, 3)] * 2], (FLOAT, 2)),
    "QuantizedMoEBias": (
        [(FLOAT, 2), (INT64, 2), (FLOAT, 2), *[(UINT8, 4), (FLOAT, 3), (UINT8, 3)] * 2, (FLOAT, 2), (FLOAT, 2)],
        (FLOAT, 2),
    ),
    "QuantizedMatMul": ([(FLOAT, 3), (UINT8, 3), (FLOAT, 2), (UINT8, 2)], (FLOAT, 3)),
}

examples = settings(max_examples=40, derandomize=True)


@cache
def session(op_type: str, **attributes: Any) -> ort.InferenceSession:
    """A model of one node with the op's body; all dimensions are dynamic."""
    inputs, (out_type, out_rank) = SIGNATURES[op_type]
    values = [
        helper.make_tensor_value_info(f"x{number}", kind, [f"x{number}_{axis}" for axis in range(rank)])
        for number, (kind, rank) in enumerate(inputs)
    ]
    output = helper.make_tensor_value_info("y", out_type, [f"y_{axis}" for axis in range(out_rank)])
    node = helper.make_node(op_type, [value.name for value in values], ["y"], domain=DOMAIN, **attributes)
    model = helper.make_model(
        helper.make_graph([node], "one_op", values, [output]),
        functions=[functions()[op_type]],
        opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(op_type: str, *inputs: np.ndarray, **attributes: Any) -> np.ndarray:
    feeds = {f"x{number}": value for number, value in enumerate(inputs)}
    return session(op_type, **attributes).run(None, feeds)[0]


@st.composite
def steps(draw, max_ctx: int = 9):
    """A random generator, sizes, and positions with padding anywhere, sometimes everywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, seq, ctx = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, max_ctx))
    positions = np.full((batch, seq), -1, dtype=np.int64)
    for row in range(batch):
        count = draw(st.integers(0, min(seq, ctx)))
        places = np.sort(rng.choice(seq, size=count, replace=False))
        start = draw(st.integers(0, ctx - count))
        positions[row, places] = np.arange(start, start + count)
    return rng, batch, seq, ctx, positions


@st.composite
def heads(draw):
    """Query heads, key heads, size of a key, size of a value."""
    groups, key_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return groups * key_heads, key_heads, draw(st.integers(1, 6)), draw(st.integers(1, 6))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


#: What a slot that was never written, a token of padding or an expert that nobody chose may hold.
POISONS = st.sampled_from([np.nan, np.inf, -np.inf, np.finfo(np.float32).max])


def poisoned(array: np.ndarray, where: np.ndarray, poison: float) -> np.ndarray:
    """A copy of `array` with `poison` where the mask, which is broadcast, is true."""
    return np.where(where, np.float32(poison), array)


def unseen(mask: np.ndarray) -> np.ndarray:
    """Slots that no token of the step sees, for arrays ``[B, H, C, D]``."""
    return ~mask.any(axis=(1, 2))[:, None, :, None]


def attention_inputs(step, head_sizes) -> tuple[np.ndarray, ...]:
    rng, batch, seq, ctx, _ = step
    query_heads, key_heads, key_dim, value_dim = head_sizes
    return (
        normal(rng, batch, query_heads, seq, key_dim),
        normal(rng, batch, key_heads, ctx, key_dim),
        normal(rng, batch, key_heads, ctx, value_dim),
    )


@examples
@given(step=steps(), heads_and_dims=heads(), poison=POISONS)
def test_kv_update(step, heads_and_dims, poison):
    rng, batch, seq, ctx, positions = step
    _, count, dim, _ = heads_and_dims
    cache, updates = normal(rng, batch, count, ctx, dim), normal(rng, batch, count, seq, dim)
    # Padding writes nothing, and a token that has overflowed is written to its own slot alone.
    cache = poisoned(cache, rng.random((batch, 1, ctx, 1)) < 0.5, poison)
    updates = poisoned(updates, (positions < 0)[:, None, :, None] | (rng.random((batch, 1, seq, 1)) < 0.3), poison)

    result = run("KVUpdate", cache, updates, positions)

    np.testing.assert_array_equal(result, reference.kv_update(cache, updates, positions))


def test_kv_update_ignores_positions_beyond_the_cache():
    cache, updates = np.zeros((1, 1, 3, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)

    result = run("KVUpdate", cache, updates, np.array([[3, -5]]))

    np.testing.assert_array_equal(result, cache)


@examples
@given(step=steps(), heads_and_dims=heads(), spare=st.integers(0, 3), poison=POISONS)
def test_kv_update_cb(step, heads_and_dims, spare, poison):
    rng, batch, seq, ctx, positions = step
    _, count, dim, _ = heads_and_dims
    cache, updates = normal(rng, batch + spare, count, ctx, dim), normal(rng, batch, count, seq, dim)
    cache = poisoned(cache, rng.random((batch + spare, 1, ctx, 1)) < 0.5, poison)
    updates = poisoned(updates, (positions < 0)[:, None, :, None], poison)
    batch_index = rng.permutation(batch + spare)[:batch, None]

    result = run("KVUpdateCB", cache, updates, positions, batch_index)

    np.testing.assert_array_equal(result, reference.kv_update_cb(cache, updates, positions, batch_index))
    # Row by row it is the plain update, and rows that the step does not name keep their content.
    np.testing.assert_array_equal(
        result[batch_index[:, 0]], reference.kv_update(cache[batch_index[:, 0]], updates, positions)
    )
    others = np.setdiff1d(np.arange(batch + spare), batch_index)
    np.testing.assert_array_equal(result[others], cache[others])


@examples
@given(step=steps(), length=st.integers(1, 9))
def test_kv_gather(step, length):
    rng, batch, _, ctx, _ = step
    cache, slots = normal(rng, batch, 2, ctx, 3), np.arange(min(length, ctx))
    batch_index = rng.permutation(batch)[:1, None]

    np.testing.assert_array_equal(run("KVGather", cache, slots), reference.kv_gather(cache, slots))
    part = run("KVGatherCB", cache, batch_index, slots)
    np.testing.assert_array_equal(part, reference.kv_gather_cb(cache, batch_index, slots))
    np.testing.assert_array_equal(part, cache[batch_index[:, 0], :, : len(slots)])


@examples
@given(step=steps(max_ctx=14), window=st.integers(0, 6), chunk=st.integers(0, 6))
def test_causal_mask(step, window, chunk):
    _, _, _, ctx, positions = step
    slots = np.arange(ctx)

    result = run("CausalMask", positions, slots, window=window, chunk=chunk)

    np.testing.assert_array_equal(result, reference.causal_mask(positions, slots, window, chunk))
    assert result[:, 0, :, 0][positions < 0].all(), "a padding token must see slot 0"


@examples
@given(step=steps(), head_sizes=heads(), softcap=st.sampled_from([0.0, 2.0]), per_head=st.booleans(), poison=POISONS)
def test_attention(step, head_sizes, softcap, per_head, poison):
    query, key, value = attention_inputs(step, head_sizes)
    rng, batch, seq, ctx, positions = step
    mask = reference.causal_mask(positions, np.arange(ctx))
    if per_head:
        mask = mask & (rng.random((batch, query.shape[1], seq, ctx)) < 0.7)  # some rows are all false
    key, value = (poisoned(states, unseen(mask), poison) for states in (key, value))

    result = run("Attention", query, key, value, mask, scale=0.3, softcap=softcap)

    assert np.isfinite(result).all()

    expected = reference.attention(query, key, value, mask, scale=0.3, softcap=softcap)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)


@examples
@given(step=steps(), head_sizes=heads(), softcap=st.sampled_from([0.0, 2.0]), shared=st.booleans(), poison=POISONS)
def test_attention_bias(step, head_sizes, softcap, shared, poison):
    query, key, value = attention_inputs(step, head_sizes)
    rng, batch, seq, ctx, positions = step
    mask = reference.causal_mask(positions, np.arange(ctx))
    bias = normal(rng, 1 if shared else batch, query.shape[1], seq, ctx)
    mask = mask[:1] if shared else mask
    bias = np.where(mask, bias, np.finfo(np.float32).min)
    key, value = (poisoned(states, unseen(mask), poison) for states in (key, value))

    result = run("AttentionBias", query, key, value, bias, scale=0.3, softcap=softcap)

    expected = reference.attention_bias(query, key, value, bias, scale=0.3, softcap=softcap)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)


@examples
@given(step=steps(), head_sizes=heads(), softcap=st.sampled_from([0.0, 2.0]), poison=POISONS)
def test_attention_sinks(step, head_sizes, softcap, poison):
    query, key, value = attention_inputs(step, head_sizes)
    rng, _, _, ctx, positions = step
    mask = reference.causal_mask(positions, np.arange(ctx))
    sinks = normal(rng, query.shape[1])
    key, value = (poisoned(states, unseen(mask), poison) for states in (key, value))

    result = run("AttentionSinks", query, key, value, mask, sinks, scale=0.3, softcap=softcap)

    expected = reference.attention_sinks(query, key, value, mask, sinks, scale=0.3, softcap=softcap)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)


@examples
@given(seed=st.integers(0, 1000), size=st.integers(1, 9), magnitude=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norm(seed, size, magnitude):
    rng = np.random.default_rng(seed)
    hidden, weight = normal(rng, 2, 3, size) * np.float32(magnitude), normal(rng, size)
    hidden[0, 1] = np.nan  # a token of padding

    result = run("RMSNorm", hidden, weight, epsilon=1e-5)

    np.testing.assert_allclose(result, reference.rms_norm(hidden, weight, epsilon=1e-5), rtol=1e-5, atol=1e-6)


@st.composite
def gates(draw):
    """Every form that the op describes."""
    gated = draw(st.integers(0, 1))
    return Gate(
        activation=draw(st.sampled_from(list(Activation))),
        gated=gated,
        interleaved=draw(st.integers(0, gated)),
        alpha=draw(st.sampled_from([1.0, 1.702])),
        limit=draw(st.sampled_from([0.0, 0.7])) if gated else 0.0,
        offset=draw(st.sampled_from([0.0, 1.0])) if gated else 0.0,
    )


# With one or two tokens the chosen experts are gathered, with more every expert is computed.
@examples
@given(
    gate=gates(),
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 9),
    chosen=st.integers(1, 3),
    biased=st.booleans(),
    poison=POISONS,
)
def test_moe(gate, seed, tokens, chosen, biased, poison):
    rng, experts, hidden_size, inner = np.random.default_rng(seed), 5, 6, 4
    outer = inner * (2 if gate.gated else 1)
    hidden = normal(rng, tokens, hidden_size)
    expert_ids = np.stack([rng.permutation(experts)[:chosen] for _ in range(tokens)])
    expert_weights = rng.random((tokens, chosen)).astype(np.float32)
    up, down = normal(rng, experts, hidden_size, outer), normal(rng, experts, inner, hidden_size)
    biases = (normal(rng, experts, outer), normal(rng, experts, hidden_size)) if biased else None
    # An expert that a token has not chosen, and a token of padding, have no part in what other tokens are given.
    unused = np.setdiff1d(np.arange(experts), expert_ids)
    down[unused[: len(unused) // 2 + 1]] = poison
    hidden[1:2] = np.nan

    inputs = (hidden, expert_ids, expert_weights, up, down, *(biases or ()))
    result = run("MoEBias" if biased else "MoE", *inputs, **asdict(gate))

    expected = reference.moe(hidden, expert_ids, expert_weights, up, down, biases, gate=gate)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@examples
@given(seed=st.integers(0, 1000), bits=st.sampled_from([4, 8]), inputs=st.integers(1, 40), outputs=st.integers(1, 5))
def test_quantized_matmul(seed, bits, inputs, outputs):
    rng, blocks = np.random.default_rng(seed), -(-inputs // 16)
    levels = rng.integers(0, 256, (outputs, blocks, 16 * bits // 8), dtype=np.uint8)
    scales, zero_points = normal(rng, outputs, blocks), rng.integers(0, 2**bits, (outputs, blocks), dtype=np.uint8)
    hidden = normal(rng, 2, 3, inputs)

    result = run("QuantizedMatMul", hidden, levels, scales, zero_points, bits=bits, input_size=inputs)

    expected = reference.quantized_matmul(hidden, levels, scales, zero_points, bits=bits, input_size=inputs)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    # Number by number, as the definition of the op reads.
    row, column = outputs - 1, inputs - 1
    byte = levels[row].reshape(-1)[column * bits // 8]
    level = byte if bits == 8 else byte >> 4 if column % 2 else byte & 15
    number = (int(level) - int(zero_points[row, column // 16])) * scales[row, column // 16]
    matrix = reference.quantized_matrix(levels, scales, zero_points, bits=bits, input_size=inputs)
    assert matrix[column, row] == pytest.approx(number)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gate", [Gate(), Gate(activation=Activation.RELU, gated=0)], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_moe(bits, gate, biased):
    """What `MoE` makes of the matrices; few tokens, which gather weights, and many."""
    rng, experts, hidden_size, inner = np.random.default_rng(bits), 5, 20, 24
    outer = inner * (2 if gate.gated else 1)

    def blocks(outputs, inputs):
        shape = (experts, outputs, -(-inputs // 16))
        levels = rng.integers(0, 256, (*shape, 2 * bits), dtype=np.uint8)
        return levels, normal(rng, *shape) / 2**bits, rng.integers(0, 2**bits, shape, dtype=np.uint8)

    up, down = blocks(outer, hidden_size), blocks(hidden_size, inner)
    biases = (normal(rng, experts, outer), normal(rng, experts, hidden_size)) if biased else ()
    up_matrix = reference.quantized_experts(*up, bits=bits, input_size=hidden_size)
    down_matrix = reference.quantized_experts(*down, bits=bits, input_size=inner)
    for tokens in (1, 7):
        hidden, chosen = normal(rng, tokens, hidden_size), rng.random((tokens, experts)).argsort(axis=1)[:, :2]
        shares = rng.random((tokens, 2)).astype(np.float32)
        op = "QuantizedMoEBias" if biased else "QuantizedMoE"
        result = run(op, hidden, chosen, shares, *up, *down, *biases, bits=bits, **asdict(gate))
        expected = reference.moe(hidden, chosen, shares, up_matrix, down_matrix, biases or None, gate=gate)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_every_op_has_a_body_and_a_test():
    assert set(functions()) == set(SIGNATURES)


@pytest.mark.parametrize("op_type", SIGNATURES)
def test_bodies_avoid_scatter(op_type):
    used = {node.op_type for node in functions()[op_type].node}

    assert not used & {"ScatterND", "ScatterElements", "Scatter"}
