"""Lowering: dialect ops of the portable graph become what ``qaic-compile`` takes.

Each pass finds its nodes by op name. What no pass takes is inlined as standard ops, so that the compiler sees standard ops and
the functions that it knows by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qaic_backend.lowering.attention import AttentionOps
from qaic_backend.lowering.causal_mask import CausalMaskOps
from qaic_backend.lowering.ctx_gather import CtxGather
from qaic_backend.lowering.ctx_scatter import CtxScatter
from qaic_backend.lowering.custom_rms_norm import CustomRMSNorm
from qaic_backend.lowering.experts import ExpertOps
from qaic_backend.lowering.float16_range import Float16Range
from qaic_backend.lowering.inline import InlineDialect
from qaic_backend.lowering.rotary_tables import RotaryTables
from qeff_framework.plugin_api import Specialization, Transform


def passes(
    specializations: Sequence[Specialization], *, convert_to_fp16: bool, sub_functions: bool = False
) -> list[Transform]:
    """The passes in the order in which they must run."""
    lengths = {item.dims["ctx_len"] for item in specializations if "ctx_len" in item.dims}
    # `Any`: the protocol calls the argument of torch passes and of graph passes `subject`.
    tables: list[Any] = [RotaryTables(max(lengths))] if lengths else []
    in_range: list[Any] = [Float16Range()] if convert_to_fp16 else []
    lowered: list[Any] = [
        *tables,
        # Before the updates are lowered: it finds what is read by the updates that it is read from.
        CtxGather(hidden_index=0) if sub_functions else CtxGather(),
        CtxScatter(),
        CausalMaskOps(),
        AttentionOps(),
        ExpertOps(specializations),
        CustomRMSNorm(),
        InlineDialect(),
        *in_range,
    ]
    return lowered


__all__ = [
    "AttentionOps",
    "CausalMaskOps",
    "CtxGather",
    "CtxScatter",
    "CustomRMSNorm",
    "ExpertOps",
    "Float16Range",
    "InlineDialect",
    "RotaryTables",
    "passes",
]
