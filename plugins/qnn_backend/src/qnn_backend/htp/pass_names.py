"""Names of the lowering passes that can be left out one by one, without loading them."""

from __future__ import annotations

SWITCHABLE = (
    "RotaryTables",
    "HostAngles",
    "FusedRMSNorm",
    "FiniteMasks",
    "Float16Epsilons",
    "PaddedProducts",
    "GatherMiddleAxis",
    "GatherNDRows",
    "MergedAxes",
    "SquareTransposeRows",
    "ScaleOperandOrder",
    "PreciseSoftplus",
    "ComposedNorms",
    "NormRows",
    "BroadcastSums",
    "ResidualScaling",
)
