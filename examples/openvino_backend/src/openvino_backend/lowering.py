"""Lowering: dialect ops become standard ops that OpenVINO fuses well; bodies take the place of those that are left."""

from __future__ import annotations

from qeff_framework.lowering import (
    AttentionOps,
    CausalMaskOps,
    GatherRows,
    InlineDialect,
    MaskPolicy,
    RemoveUnused,
    ScatterUpdates,
)
from qeff_framework.plugin_api import Transform


def passes() -> list[Transform]:
    """The passes, in the order in which they run."""
    return [
        GatherRows(),
        CausalMaskOps(),
        # States begin as zeros and padding writes nothing, so no slot holds anything but numbers.
        AttentionOps(MaskPolicy(form="select", clears_unseen=False)),
        ScatterUpdates(),
        InlineDialect(),
        RemoveUnused(),
    ]
