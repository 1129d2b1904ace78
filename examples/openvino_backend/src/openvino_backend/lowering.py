"""Lowering: dialect ops become standard ops that OpenVINO fuses well; bodies take the place of those that are left."""

from __future__ import annotations

import onnx_ir

from qeff_framework.lowering import (
    AttentionOps,
    CausalMaskOps,
    DequantizedProducts,
    ExpertOps,
    GatherRows,
    GraphEditor,
    GraphPass,
    InlineDialect,
    MaskPolicy,
    RemoveUnused,
    ScatterUpdates,
    is_weight,
    made_by,
    operand,
    static_shape,
)
from qeff_framework.plugin_api import Transform, TransformRequest


class ExpandedProducts(GraphPass):
    """Repeats the left factor of a product with a stack of weights, as experts multiply: ``[T,N] x [E,N,U]``.

    OpenVINO 2026.4 takes such a product for one with a single weight, and refuses it on the CPU.
    """

    name = "ExpandedProducts"
    version = "1"

    def run(self, model: onnx_ir.Model) -> bool:
        """Says whether a product was changed."""
        changed = False
        # In the branches of a body as well: where sizes are not known, ExpertOps leaves the op to it.
        for node in [node for node in model.graph.all_nodes() if node.op_type == "MatMul"]:
            left, right = operand(node, 0), operand(node, 1)
            stack = (static_shape(right) or ())[:-2]
            is_expanded = made_by(left, "Expand") is not None or tuple(left.shape or ())[:-2] == stack
            if stack and is_weight(right) and not is_expanded:
                edit = GraphEditor(model, node)
                node.replace_input_with(0, edit.op("Expand", left, edit.int64s(*stack, 1, 1)))
                changed = True
        return changed


def passes(request: TransformRequest) -> list[Transform]:
    """The passes, in the order in which they run."""
    return [
        GatherRows(),
        CausalMaskOps(),
        # States begin as zeros and padding writes nothing, so no slot holds anything but numbers.
        AttentionOps(MaskPolicy(form="select", clears_unseen=False)),
        ExpertOps(request.specializations),
        # OpenVINO 2026.4 takes the halves of a byte in the op's body for other numbers.
        DequantizedProducts(),
        ScatterUpdates(),
        InlineDialect(),
        ExpandedProducts(),
        RemoveUnused(),
    ]
