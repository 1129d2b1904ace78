"""Lowering: dialect ops of the portable graph become what ``qaic-compile`` takes.

Each pass finds its nodes by op name. What no pass takes is inlined as standard ops, so that the compiler sees standard ops and
the functions that it knows by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from qaic_backend.lowering.ctx_gather import CtxGather
from qaic_backend.lowering.ctx_scatter import CtxScatter
from qaic_backend.lowering.custom_rms_norm import CustomRMSNorm
from qaic_backend.lowering.device import FLOAT16_MAX
from qeff_framework.lowering import (
    FLOAT16_MIN,
    AttentionOps,
    BlockedAttention,
    CausalMaskOps,
    DequantizedExperts,
    DequantizedProducts,
    ExpertOps,
    Float16Epsilons,
    InlineDialect,
    LimitConstants,
    Limits,
    MaskPolicy,
    ReplicateKVHeads,
    RotaryTables,
    UnrollScan,
)
from qeff_framework.plugin_api import Specialization, Transform

#: Constants that FP16 would make infinite are moved to the ends of its range. Infinities mean what they say.
FLOAT16_RANGE = Limits(lowest=FLOAT16_MIN, low=FLOAT16_MIN, highest=FLOAT16_MAX, high=FLOAT16_MAX, infinities=False)


def passes(
    specializations: Sequence[Specialization],
    *,
    convert_to_fp16: bool,
    sub_functions: bool = False,
    num_kv_blocks: int = 1,
    replicate_kv_heads: int = 1,
) -> list[Transform]:
    """The passes in the order in which they must run."""
    longest = max((item.dims.get("seq_len", 1) for item in specializations), default=1)
    # `CtxGather` reads zeros for the slots behind a row's last token.
    mask = MaskPolicy(hidden=FLOAT16_MIN, clears_unseen=False)
    return [
        UnrollScan(longest),
        # The compiler makes blocks of its own, from floating-point numbers.
        DequantizedProducts(),
        DequantizedExperts(),
        RotaryTables.of(specializations),
        # They look for what attention reads of the updates.
        *([ReplicateKVHeads(replicate_kv_heads)] if replicate_kv_heads > 1 else []),
        *([BlockedAttention(num_kv_blocks, mask, specializations)] if num_kv_blocks > 1 else []),
        # Before the updates are lowered: it finds what is read by the updates that it is read from.
        CtxGather(hidden_index=0) if sub_functions else CtxGather(),
        CtxScatter(),
        CausalMaskOps(),
        AttentionOps(mask),
        ExpertOps(specializations),
        CustomRMSNorm(),
        InlineDialect(),
        *([LimitConstants(FLOAT16_RANGE), Float16Epsilons()] if convert_to_fp16 else []),
    ]


__all__ = ["FLOAT16_RANGE", "CtxGather", "CtxScatter", "CustomRMSNorm", "passes"]
