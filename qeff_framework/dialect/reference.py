"""What the dialect ops mean, in NumPy: short, slow and the last word. Tests hold bodies and lowerings against it.

Shapes: B rows of this step, F rows of a cache for continuous batching, H heads (Hq of queries, Hkv of keys and values; Hq is a
multiple of Hkv), S tokens of this step, C cache slots, L slots that a step reads, D size of a key, Dv size of a value. Of a
mixture of experts: T tokens of hidden size H, K chosen of E experts, U columns of an expert's first weight, I rows of the second.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qeff_framework.dialect.names import Activation, Gate

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Levels = NDArray[np.uint8]


def kv_update(cache: Floats, updates: Floats, position_ids: Ints) -> Floats:
    """Writes ``updates[b, :, s]`` into slot ``position_ids[b, s]`` of ``cache[b]`` and leaves every other slot as it is.

    `cache` is ``[B, H, C, D]``, `updates` ``[B, H, S, D]``, `position_ids` ``[B, S]``. A position outside ``0 .. C-1``
    writes nothing; -1 marks padding. The positions of a row that are written are distinct.
    """
    result = cache.copy()
    for row, token in np.argwhere((position_ids >= 0) & (position_ids < cache.shape[2])):
        result[row, :, position_ids[row, token]] = updates[row, :, token]
    return result


def kv_update_cb(cache: Floats, updates: Floats, position_ids: Ints, batch_index: Ints) -> Floats:
    """`kv_update` for continuous batching: `cache` is ``[F, H, C, D]`` and row b of the step is its row ``batch_index[b, 0]``.

    `batch_index` is ``[B, 1]``; its numbers are distinct and lie in ``0 .. F-1``, also those of rows that are all padding.
    """
    result = cache.copy()
    rows = batch_index[:, 0]
    result[rows] = kv_update(cache[rows], updates, position_ids)
    return result


def kv_gather(cache: Floats, kv_positions: Ints) -> Floats:
    """The slots `kv_positions` ``[L]`` of each row of `cache` ``[B, H, C, D]``: ``[B, H, L, D]``."""
    result: Floats = cache[:, :, kv_positions]
    return result


def kv_gather_cb(cache: Floats, batch_index: Ints, kv_positions: Ints) -> Floats:
    """The slots `kv_positions` ``[L]`` of the rows `batch_index` ``[B, 1]`` of `cache` ``[F, H, C, D]``: ``[B, H, L, D]``."""
    return kv_gather(cache[batch_index[:, 0]], kv_positions)


def causal_mask(position_ids: Ints, kv_positions: Ints, window: int = 0, chunk: int = 0) -> Bools:
    """Which slots each token sees: bool ``[B, 1, S, C]`` from `position_ids` ``[B, S]`` and `kv_positions` ``[C]``.

    A token sees the slots up to its own position; with `window` only the last `window` of them, its own included; with `chunk`
    only those in its own chunk, where chunks are ``chunk`` positions long and start at multiples of ``chunk``. 0 switches a
    limit off. A padding token (negative position) is treated as position 0, so its row is not empty.
    """
    query = np.maximum(position_ids, 0)[:, None, :, None]
    key = kv_positions[None, None, None, :]
    visible = key <= query
    if window:
        visible &= key > query - window
    if chunk:
        visible &= query // chunk == key // chunk
    return visible


def attention(query: Floats, key: Floats, value: Floats, mask: Bools, *, scale: float, softcap: float = 0.0) -> Floats:
    """Softmax attention ``[B, Hq, S, Dv]``; query head h uses key head ``h // (Hq / Hkv)``.

    `query` is ``[B, Hq, S, D]``, `key` ``[B, Hkv, C, D]``, `value` ``[B, Hkv, C, Dv]``, `mask` bool ``[B|1, 1|Hq, S, C]``.
    Scores are ``scale * q.k``, then, unless `softcap` is 0, ``softcap * tanh(scores / softcap)``. Where the mask is false the
    score is the lowest finite number: a row without a true entry is an average, not NaN. Slots that no token of the step sees
    count as zeros, whatever they hold: a slot that was never written may be infinite or NaN.
    """
    key, value = _seen(key, mask), _seen(value, mask)
    return _weigh(_softmax(_masked(_scores(query, key, scale, softcap), mask)), value)


def attention_bias(
    query: Floats, key: Floats, value: Floats, bias: Floats, *, scale: float, softcap: float = 0.0
) -> Floats:
    """`attention` with a float `bias` ``[B|1, 1|Hq, S, C]`` that is added to the scores after the cap, in place of a mask.

    A bias of half the lowest float32 or less hides the slot, as a mask would.
    """
    mask = bias > np.finfo(np.float32).min / 2
    key, value = _seen(key, mask), _seen(value, mask)
    return _weigh(_softmax(_masked(_scores(query, key, scale, softcap) + bias, mask)), value)


def attention_sinks(
    query: Floats, key: Floats, value: Floats, mask: Bools, sinks: Floats, *, scale: float, softcap: float = 0.0
) -> Floats:
    """`attention` where each head has one more logit, `sinks` ``[Hq]``, that takes probability and has no value."""
    key, value = _seen(key, mask), _seen(value, mask)
    scores = _masked(_scores(query, key, scale, softcap), mask)
    column = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
    return _weigh(_softmax(np.concatenate([scores, column], axis=3))[..., :-1], value)


def rms_norm(hidden: Floats, weight: Floats, *, epsilon: float) -> Floats:
    """``hidden / sqrt(mean(hidden ** 2) + epsilon) * weight`` over the last dimension, computed in float32."""
    wide = hidden.astype(np.float32)
    mean_square = np.mean(wide * wide, axis=-1, keepdims=True)
    normalised: Floats = wide / np.sqrt(mean_square + np.float32(epsilon)) * weight.astype(np.float32)
    return normalised.astype(hidden.dtype)


def moe(
    hidden: Floats,
    expert_ids: Ints,
    expert_weights: Floats,
    up: Floats,
    down: Floats,
    biases: tuple[Floats, Floats] | None = None,
    *,
    gate: Gate,
) -> Floats:
    """The sum over k of ``expert_weights[t, k]`` times what expert ``expert_ids[t, k]`` makes of ``hidden[t]``: ``[T, H]``.

    `hidden` is ``[T, H]``, `up` ``[E, H, U]``, `down` ``[E, I, H]``, `biases` ``[E, U]`` and ``[E, H]``. The ids of a token are
    distinct and its weights are not negative.
    """
    result = np.zeros_like(hidden)
    for token, choice in np.ndindex(expert_ids.shape):
        expert = expert_ids[token, choice]
        projected = hidden[token] @ up[expert] + (biases[0][expert] if biases else 0)
        output = _gated(projected, gate) @ down[expert] + (biases[1][expert] if biases else 0)
        result[token] += expert_weights[token, choice] * output
    return result


def _gated(projected: Floats, gate: Gate) -> Floats:
    if not gate.gated:
        return _activated(projected, gate)
    halves = (projected[0::2], projected[1::2]) if gate.interleaved else tuple(np.split(projected, 2))
    opening, linear = halves
    if gate.limit:
        opening, linear = np.minimum(opening, gate.limit), np.clip(linear, -gate.limit, gate.limit)
    result: Floats = _activated(opening, gate) * (linear + gate.offset)
    return result


def _activated(x: Floats, gate: Gate) -> Floats:
    positive: Floats = np.maximum(x, 0)
    results: dict[int, Floats] = {
        Activation.SWISH: x / (1 + np.exp(-gate.alpha * x)),
        Activation.GELU: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
        Activation.GELU_TANH: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        Activation.RELU: positive,
        Activation.RELU_SQUARED: positive**2,
    }
    return results[gate.activation]


def _scores(query: Floats, key: Floats, scale: float, softcap: float) -> Floats:
    repeated = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    scores: Floats = np.matmul(query, repeated.swapaxes(2, 3)) * query.dtype.type(scale)
    if softcap:
        scores = np.tanh(scores / softcap) * softcap
    return scores


def _masked(scores: Floats, mask: Bools) -> Floats:
    masked: Floats = np.where(mask, scores, np.finfo(np.float32).min)
    return masked


def _seen(states: Floats, mask: Bools) -> Floats:
    """Keys or values of the slots that a token of the step sees, zeros elsewhere."""
    is_seen = np.asarray(mask.any(axis=(1, 2)))[:, None, :, None]
    seen: Floats = np.where(is_seen, states, states.dtype.type(0))
    return seen


def _softmax(scores: Floats) -> Floats:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return weights


def _weigh(weights: Floats, value: Floats) -> Floats:
    result: Floats = np.matmul(weights, np.repeat(value, weights.shape[1] // value.shape[1], axis=1))
    return result


def quantized_matmul(
    hidden: Floats, levels: Levels, scales: Floats, zero_points: Levels, *, bits: int, input_size: int
) -> Floats:
    """``hidden [..., K]`` times the matrix ``[K, N]`` that `quantized_matrix` gives: ``[..., N]``."""
    product: Floats = hidden @ quantized_matrix(levels, scales, zero_points, bits=bits, input_size=input_size).astype(
        hidden.dtype
    )
    return product


def quantized_matrix(levels: Levels, scales: Floats, zero_points: Levels, *, bits: int, input_size: int) -> Floats:
    """The matrix ``[K, N]`` whose column n has the numbers ``(level - zero point) * scale`` of the blocks of output n.

    `levels` is ``[N, blocks, bytes]``, with two 4-bit levels in a byte, the first in its lower half, or one of 8 bits; `scales`
    and `zero_points` are ``[N, blocks]``; `input_size` is K, and levels of the last block behind it take no part.
    """
    whole = levels if bits == 8 else np.stack([levels & 15, levels >> 4], axis=-1).reshape(*levels.shape[:2], -1)
    centred = whole.astype(scales.dtype) - zero_points[..., None].astype(scales.dtype)
    rows: Floats = (centred * scales[..., None]).reshape(len(levels), -1)[:, :input_size]
    return rows.T


def quantized_moe(
    hidden: Floats,
    expert_ids: Ints,
    expert_weights: Floats,
    up: tuple[Levels, Floats, Levels],
    down: tuple[Levels, Floats, Levels],
    biases: tuple[Floats, Floats] | None = None,
    *,
    bits: int,
    gate: Gate,
) -> Floats:
    """What `moe` computes with the matrices that `quantized_experts` makes of `up` and `down`: ``[T, H]``.

    `up` holds levels, scales and zero points of U outputs and H inputs, `down` those of H outputs and I inputs.
    """
    inner = up[0].shape[1] // (2 if gate.gated else 1)
    first = quantized_experts(*up, bits=bits, input_size=hidden.shape[1])
    second = quantized_experts(*down, bits=bits, input_size=inner)
    return moe(hidden, expert_ids, expert_weights, first, second, biases, gate=gate)


def quantized_experts(levels: Levels, scales: Floats, zero_points: Levels, *, bits: int, input_size: int) -> Floats:
    """``[E, K, N]``: what `quantized_matrix` makes of each expert's ``[N, blocks, bytes]`` and ``[N, blocks]``."""
    result = np.empty((len(levels), input_size, levels.shape[1]), scales.dtype)
    for expert, parts in enumerate(zip(levels, scales, zero_points, strict=True)):
        result[expert] = quantized_matrix(*parts, bits=bits, input_size=input_size)
    return result
