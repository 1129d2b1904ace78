"""What does not depend on the inputs of a graph is computed here. With static shapes that is most of what is about shapes."""

from __future__ import annotations

import math

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.unused import forget_lost_readers
from qeff_framework.lowering.values import constant_array, has_subgraph, nodes_of, operand, static_shape

#: The bodies of the dialect nest shapes of shapes; each round resolves one level.
_MAX_ROUNDS = 12
#: Larger constants are not compared with each other.
_COMPARED = 1024
#: Folded, quantised weights would be floats.
_KEPT = ("QuantizeLinear", "DequantizeLinear")


class FoldConstants(GraphPass):
    """Evaluates constant nodes, takes known branches and choices, infers shapes, and removes no-ops and duplicates.

    Constants become initializers. A ``Reshape`` to a known shape names it: there is no 0, no -1 and no ``allowzero``. Tensors of
    more than `max_elements` are weights: they are neither read nor made.
    """

    name = "FoldConstants"
    version = "3"

    def __init__(self, max_elements: int = 1 << 22) -> None:
        self._max_elements = max_elements

    def run(self, model: ir.Model) -> bool:
        """Says whether something was evaluated or removed."""
        from onnxscript.optimizer import fold_constants_ir

        tidy = ir.passes.Sequential(
            common_passes.IdentityEliminationPass(),
            common_passes.RemoveUnusedNodesPass(),
            common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common_passes.LiftSubgraphInitializersToMainGraphPass(),
            common_passes.DeduplicateInitializersPass(size_limit=min(_COMPARED, self._max_elements)),
            common_passes.CommonSubexpressionEliminationPass(),
        )
        changed = False
        for _ in range(_MAX_ROUNDS):
            folded = fold_constants_ir(
                model,
                onnx_shape_inference=True,
                input_size_limit=self._max_elements,
                output_size_limit=self._max_elements,
                should_fold=self._should_fold,
            )
            reshaped = _plain_reshapes(model)
            chosen = _known_choices(model)
            forget_lost_readers(model)
            tidied = tidy(model)
            if not (folded.modified or reshaped or chosen or tidied.modified):
                break
            changed = True
        return changed

    def _should_fold(self, node: ir.Node) -> bool | None:
        """Called for nodes whose inputs are constants. `None` leaves the decision to onnxscript."""
        sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
        sizes += [math.prod(static_shape(value) or ()) for value in node.outputs]
        if has_subgraph(node) or node.op_type in _KEPT:
            return None
        return max(sizes, default=0) <= self._max_elements


def _plain_reshapes(model: ir.Model) -> bool:
    """Gives each reshape to a static shape that shape as its target, and removes those that change nothing."""
    changed = False
    for node in nodes_of(model, "Reshape"):
        target = static_shape(node.outputs[0])
        if target is None or 0 in target:
            continue
        edit = GraphEditor(model, node)
        source = operand(node, 0)
        if static_shape(source) == target and not node.outputs[0].is_graph_output():
            edit.replace(node, source)
            changed = True
            continue
        given = constant_array(node.inputs[1])
        if given is None or given.tolist() != list(target) or "allowzero" in node.attributes:
            node.replace_input_with(1, edit.int64s(*target))
            node.attributes.pop("allowzero", None)
            changed = True
    return changed


def _known_choices(model: ir.Model) -> bool:
    """Replaces each ``Where`` whose condition is one known value by what it chooses."""
    changed = False
    for node in nodes_of(model, "Where"):
        sizes, shape = static_shape(operand(node, 0)), static_shape(node.outputs[0])
        if sizes is None or shape is None or not 0 < math.prod(sizes) <= _COMPARED:
            continue
        condition = constant_array(node.inputs[0])
        if condition is None or bool(condition.all()) != bool(condition.any()):
            continue
        edit = GraphEditor(model, node)
        taken = operand(node, 1 if condition.all() else 2)
        if static_shape(taken) != shape:
            taken = edit.op("Expand", taken, edit.int64s(*shape))
        edit.replace(node, taken)
        changed = True
    return changed
