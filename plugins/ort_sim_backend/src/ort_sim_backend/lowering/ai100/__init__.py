"""Lowering for ``simulate="ai100"``: the ops that Cloud AI 100 gets, with their results rounded to the device's number formats.

Attention, masks and experts become the standard ops that the device's compiler is given, so that an intermediate result is
rounded wherever the device stores one. A kernel that fuses several ops would keep float32 between them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ort_sim_backend.lowering.ai100.float16_results import Float16Results
from ort_sim_backend.lowering.ai100.mxfp6_weights import MXFP6Weights
from ort_sim_backend.lowering.ai100.mxint8_states import MXINT8States
from ort_sim_backend.lowering.rms_norm import SimplifiedRMSNorm
from qeff_framework.lowering import (
    FLOAT16_MIN,
    AttentionOps,
    BlockedAttention,
    CausalMaskOps,
    DequantizedExperts,
    DequantizedProducts,
    ExpertOps,
    GatherRows,
    InlineDialect,
    LimitConstants,
    Limits,
    MaskPolicy,
    Op,
    RemoveUnused,
    ReplicateKVHeads,
    RotaryTables,
    ScatterUpdates,
)
from qeff_framework.plugin_api import Specialization, Transform

#: Ops that read and write caches: they move numbers and round none.
CACHE_OPS = frozenset({Op.KV_UPDATE, Op.KV_UPDATE_CB, Op.KV_GATHER, Op.KV_GATHER_CB})

_FLOAT16_RANGE = Limits(lowest=FLOAT16_MIN, low=FLOAT16_MIN, highest=-FLOAT16_MIN, high=-FLOAT16_MIN, infinities=False)


def ai100_passes(
    specializations: Sequence[Specialization],
    *,
    mxfp6_matmul: bool,
    mxint8_kv_cache: bool,
    fp32_nodes: Collection[str] = (),
    num_kv_blocks: int = 1,
    replicate_kv_heads: int = 1,
) -> list[Transform]:
    """The passes in the order in which they must run."""
    lengths = [item.dims["ctx_len"] for item in specializations if "ctx_len" in item.dims]
    mask = MaskPolicy(hidden=FLOAT16_MIN)
    return [
        # As for the device: its compiler makes blocks of its own.
        DequantizedProducts(),
        DequantizedExperts(),
        *([ReplicateKVHeads(replicate_kv_heads)] if replicate_kv_heads > 1 else []),
        *([BlockedAttention(num_kv_blocks, mask, specializations)] if num_kv_blocks > 1 else []),
        *([RotaryTables(max(lengths))] if lengths else []),
        GatherRows(),
        CausalMaskOps(),
        AttentionOps(mask),
        ExpertOps(specializations),
        # The device has a kernel that keeps the sum of squares out of FP16; this one does so as well.
        SimplifiedRMSNorm(),
        InlineDialect(frozenset(Op) - CACHE_OPS),
        LimitConstants(_FLOAT16_RANGE),
        *([MXFP6Weights()] if mxfp6_matmul else []),
        Float16Results(fp32_nodes),
        # After the results are rounded, and before the updates are lowered: the arithmetic of the format is exact.
        *([MXINT8States()] if mxint8_kv_cache else []),
        ScatterUpdates(),
        InlineDialect(),
        RemoveUnused(),
    ]


__all__ = ["CACHE_OPS", "Float16Results", "MXFP6Weights", "MXINT8States", "ai100_passes"]
