"""Lowering: the portable graph becomes static graphs that the NPU can run completely.

`BindSizes` makes one graph for each specialization; every other pass works on each of them.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import (
    FLOAT32_MIN,
    AttentionOps,
    BindSizes,
    CausalMaskOps,
    DequantizedExperts,
    DequantizedProducts,
    Float16Epsilons,
    FoldConstants,
    InlineDialect,
    MaskPolicy,
    OneHotUpdates,
    PerGraph,
    RotaryTables,
    UnrollScan,
)
from qeff_framework.plugin_api import Transform, TransformRequest
from qnn_backend.htp.lowering.boolean_equality import BooleanEquality
from qnn_backend.htp.lowering.boolean_pads import BooleanPads
from qnn_backend.htp.lowering.broadcast_sums import BroadcastSums
from qnn_backend.htp.lowering.composed_norms import ComposedNorms
from qnn_backend.htp.lowering.finite_masks import FiniteMasks
from qnn_backend.htp.lowering.gather_axis import GatherMiddleAxis
from qnn_backend.htp.lowering.gather_nd import GatherNDRows
from qnn_backend.htp.lowering.gelu import FusedGelu
from qnn_backend.htp.lowering.integer_negation import IntegerNegation
from qnn_backend.htp.lowering.merged_axes import MergedAxes
from qnn_backend.htp.lowering.norm_rows import NormRows
from qnn_backend.htp.lowering.operand_order import ScaleOperandOrder
from qnn_backend.htp.lowering.opset import LaterOpset
from qnn_backend.htp.lowering.padded_products import PaddedProducts
from qnn_backend.htp.lowering.rms_norm import FusedRMSNorm
from qnn_backend.htp.lowering.softplus import PreciseSoftplus
from qnn_backend.htp.lowering.square_transpose import SquareTransposeRows
from qnn_backend.htp.lowering.state_updates import StateUpdates, updated_states

#: Added to the score of a slot that must not be seen. Below -1e4 nothing changes in float16; in a quantised graph the range of
#: the scores must stay small.
MASKED_FLOAT16 = -1e4
MASKED_QUANTISED = -50.0


def passes(request: TransformRequest) -> list[Transform]:
    """The passes in the order in which they must run, without those that the options switch off."""
    options = request.options
    masked = MASKED_QUANTISED if options.precision == "a16w8" else MASKED_FLOAT16
    # Without the pass a mask keeps what the dialect says, the lowest float32.
    hidden = FLOAT32_MIN if "FiniteMasks" in options.disable_passes else masked
    every: list[Transform] = [
        UnrollScan(),
        # The compiler makes blocks of its own, from floating-point numbers.
        DequantizedProducts(),
        DequantizedExperts(),
        RotaryTables.of(request.specializations),
        StateUpdates(),
        OneHotUpdates(),
        CausalMaskOps(ir.DataType.INT32),
        # The session clears the caches when a text begins, and writes nothing but tokens of that text.
        AttentionOps(MaskPolicy(form="add", hidden=hidden, clears_unseen=False)),
        FusedRMSNorm(),
        InlineDialect(),
        LaterOpset(),
        FoldConstants(),
        FiniteMasks(masked),
        *([] if options.precision == "a16w8" else [Float16Epsilons()]),
        FusedGelu(),
        PreciseSoftplus(),
        BooleanEquality(),
        BooleanPads(),
        PaddedProducts(),
        IntegerNegation(),
        GatherNDRows(),
        GatherMiddleAxis(),
        MergedAxes(),
        SquareTransposeRows(),
        ScaleOperandOrder(),
        ComposedNorms(),
        NormRows(),
        BroadcastSums(),
    ]
    chosen = [PerGraph(single) for single in every if single.name not in options.disable_passes]
    return [BindSizes(request.specializations), *chosen]


__all__ = ["passes", "updated_states"]
