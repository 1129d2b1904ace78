"""The torch side of the dialect: one typed function per op.

Each call leaves a single node of domain ``qeff`` in the traced graph. Outside a trace the functions return zeros of the right
shape and dtype: they describe a graph, they do not compute. `qeff_framework.dialect.reference` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from typing import TYPE_CHECKING

from qeff_framework.dialect.names import DOMAIN, VERSION, Gate

if TYPE_CHECKING:
    import torch


def kv_update(cache: torch.Tensor, updates: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Writes ``updates [B, H, S, D]`` into ``cache [B, H, C, D]`` at ``position_ids [B, S]``; negative ones write nothing."""
    return _emit("KVUpdate", (cache, updates, position_ids), {}, cache.dtype, cache.shape)


def kv_update_cb(
    cache: torch.Tensor, updates: torch.Tensor, position_ids: torch.Tensor, batch_index: torch.Tensor
) -> torch.Tensor:
    """`kv_update` for continuous batching: row b of this step is row ``batch_index[b, 0]`` of ``cache [F, H, C, D]``."""
    return _emit("KVUpdateCB", (cache, updates, position_ids, batch_index), {}, cache.dtype, cache.shape)


def kv_gather(cache: torch.Tensor, kv_positions: torch.Tensor) -> torch.Tensor:
    """The slots ``kv_positions [L]`` of each row of ``cache [B, H, C, D]``: ``[B, H, L, D]``."""
    batch, heads, _, dim = cache.shape
    shape = (batch, heads, kv_positions.shape[0], dim)
    return _emit("KVGather", (cache, kv_positions), {}, cache.dtype, shape)


def kv_gather_cb(cache: torch.Tensor, batch_index: torch.Tensor, kv_positions: torch.Tensor) -> torch.Tensor:
    """The slots ``kv_positions [L]`` of the rows ``batch_index [B, 1]`` of ``cache [F, H, C, D]``: ``[B, H, L, D]``."""
    _, heads, _, dim = cache.shape
    shape = (batch_index.shape[0], heads, kv_positions.shape[0], dim)
    return _emit("KVGatherCB", (cache, batch_index, kv_positions), {}, cache.dtype, shape)


def causal_mask(
    position_ids: torch.Tensor, kv_positions: torch.Tensor, *, window: int = 0, chunk: int = 0
) -> torch.Tensor:
    """Which of the slots ``kv_positions [C]`` the tokens at ``position_ids [B, S]`` see: bool ``[B, 1, S, C]``."""
    import torch

    batch, seq = position_ids.shape
    shape = (batch, 1, seq, kv_positions.shape[0])
    attributes = {"window": window, "chunk": chunk}
    return _emit("CausalMask", (position_ids, kv_positions), attributes, torch.bool, shape)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Grouped attention over the keys where the bool ``mask [B|1, 1|Hq, S, C]`` is true: ``[B, Hq, S, Dv]``."""
    return _emit_attention("Attention", (query, key, value, mask), scale, softcap)


def attention_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """`attention` with a float ``bias [B|1, 1|Hq, S, C]`` that is added to the scaled scores."""
    return _emit_attention("AttentionBias", (query, key, value, bias), scale, softcap)


def attention_sinks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    sinks: torch.Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """`attention` where each head has one more logit, ``sinks [Hq]``, that takes probability and has no value."""
    return _emit_attention("AttentionSinks", (query, key, value, mask, sinks), scale, softcap)


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, computed in float32, times ``weight``."""
    return _emit("RMSNorm", (hidden, weight), {"epsilon": epsilon}, hidden.dtype, hidden.shape)


def moe(
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    biases: tuple[torch.Tensor, torch.Tensor] | None,
    gate: Gate,
) -> torch.Tensor:
    """The chosen experts ``expert_ids [T, K]`` of tokens ``hidden [T, H]``, weighted by ``expert_weights [T, K]`` and added.

    `up` is ``[E, H, U]`` and `down` ``[E, I, H]``, with the biases ``[E, U]`` and ``[E, H]``.
    """
    inputs = (hidden, expert_ids, expert_weights, up, down, *(biases or ()))
    return _emit("MoE" if biases is None else "MoEBias", inputs, asdict(gate), hidden.dtype, hidden.shape)


def _emit_attention(op_type: str, inputs: tuple[torch.Tensor, ...], scale: float, softcap: float) -> torch.Tensor:
    query, _, value = inputs[:3]
    shape = (*query.shape[:3], value.shape[3])
    return _emit(op_type, inputs, {"scale": scale, "softcap": softcap}, query.dtype, shape)


if TYPE_CHECKING:
    #: Takes the op, its inputs and attributes, and the dtype and shape of the result; `None` leaves the node to torch.
    Emission = Callable[
        [str, Sequence[torch.Tensor], Mapping[str, int | float], torch.dtype, Sequence[int | torch.SymInt]],
        torch.Tensor | None,
    ]

_EMISSION: ContextVar[Emission | None] = ContextVar("qeff_emission", default=None)


@contextmanager
def emitting(emission: Emission) -> Iterator[None]:
    """While the body runs outside a trace, `emission` is asked for the result of each op of this thread.

    Torch's way through an operator that has a name in a graph takes a quarter of a run that is there to be looked at.
    """
    token = _EMISSION.set(emission)
    try:
        yield
    finally:
        _EMISSION.reset(token)


def _emit(
    op_type: str,
    inputs: Sequence[torch.Tensor],
    attributes: Mapping[str, int | float],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
) -> torch.Tensor:
    import torch

    emission = _EMISSION.get()
    result = None if emission is None else emission(op_type, inputs, attributes, dtype, shape)
    if result is not None:
        return result
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op_type}", inputs, dict(attributes), dtype=dtype, shape=list(shape), version=VERSION
    )
