"""Lowering: dialect ops of the portable graph become what ONNX Runtime's CPU kernels do best.

Each pass finds its nodes by op name and leaves the ones that it cannot carry to the next pass, and at last to the op's body in
standard ops, which ONNX Runtime inlines.
"""

from __future__ import annotations

from ort_sim_backend.lowering.encoder_branch import EncoderBranch
from ort_sim_backend.lowering.experts import FusedExperts
from ort_sim_backend.lowering.gather_rows import GatherRows
from ort_sim_backend.lowering.group_query_attention import GroupQueryAttention
from ort_sim_backend.lowering.rms_norm import SimplifiedRMSNorm
from ort_sim_backend.lowering.scatter_cache import ScatterCache
from ort_sim_backend.lowering.tied_weights import TiedWeights
from ort_sim_backend.lowering.unused import RemoveUnused
from qeff_framework.plugin_api import Transform

#: The passes in the order in which they must run.
PASSES: tuple[Transform, ...] = (
    GroupQueryAttention(),
    GatherRows(),
    SimplifiedRMSNorm(),
    FusedExperts(),
    TiedWeights(),
    EncoderBranch(),
    ScatterCache(),
    RemoveUnused(),
)

__all__ = [
    "PASSES",
    "EncoderBranch",
    "FusedExperts",
    "GatherRows",
    "GroupQueryAttention",
    "RemoveUnused",
    "ScatterCache",
    "SimplifiedRMSNorm",
    "TiedWeights",
]
