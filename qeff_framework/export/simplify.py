"""Simplifies a translated graph: constants, redundant operators, common subexpressions. Dialect ops stay as they are."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Container
from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
from onnxscript import rewriter

#: Folding exposes matches of the rewrite rules, and these expose constants; a third round changes nothing.
_ROUNDS = 2


def simplify(
    model: onnx_ir.Model,
    *,
    should_fold: Callable[[onnx_ir.Node], bool | None],
    between: Callable[[], None] = lambda: None,
) -> None:
    """Does in place what ``onnxscript.optimizer.optimize_ir(model, inline=False)`` does, in a fraction of the time.

    The optimizer tries each of some 40 rewrite rules at every node, and rules of several outputs read the whole graph each
    time. Here a rule is tried only at nodes of the operator that its pattern ends in.

    Args:
        model: the translated model.
        should_fold: says of a node whether it may be folded; `None` leaves the decision to the optimizer.
        between: called when nodes were folded and rewritten, before equal ones are made one.
    """
    clean = onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
    )
    for _ in range(_ROUNDS):
        folded = onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=should_fold)
        rewritten = _rules().apply_to_model(model)
        cleaned = clean(model)
        if not (folded.modified or rewritten or cleaned.modified):
            break
    between()
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


class _RootedRule:
    """A rewrite rule that is tried only at nodes of the operator that its pattern ends in."""

    def __init__(self, rule: Any, root: onnx_ir.OperatorIdentifier, readers: int) -> None:
        self._rule = rule
        self._root = root
        #: How many nodes like the root read the same first input. The rule looks for the others in the whole graph.
        self._readers = readers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: onnx_ir.Model, graph: Any, node: onnx_ir.Node, **options: Any) -> Any:
        """Returns the replacement, or `None` where the rule does not apply."""
        if node.op_identifier() != self._root or (self._readers > 1 and not self._has_readers(node)):
            return None
        found = self._rule.try_rewrite(model, graph, node, **options)
        if found is not None and found.new_initializers:
            # Rules name a constant by what they read: that of a second reader would take the place of the first one's.
            taken = {*getattr(graph, "initializers", ()), *model.graph.initializers}
            for value in found.new_initializers:
                value.name = value.const_value.name = _free_name(value.name, taken)
                taken.add(value.name)
        return found

    def _has_readers(self, node: onnx_ir.Node) -> bool:
        source = node.inputs[0]
        uses = () if source is None else source.uses()
        return sum(place == 0 and user.op_identifier() == self._root for user, place in uses) >= self._readers


def _free_name(name: str, taken: Container[str]) -> str:
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return name if name not in taken else next(each for each in numbered if each not in taken)


@functools.cache
def _rules() -> Any:
    """The optimizer's own rules. A rule of which no final operator is known is tried at every node, as there."""
    rules: Any = rewriter._DEFAULT_REWRITE_RULES  # noqa: SLF001  (onnxscript has no public name for them)
    return rewriter.RewriteRuleSet([_rooted(_exact(copy.deepcopy(rule))) for rule in rules])


def _exact(rule: Any) -> Any:
    """Compares constants exactly. The rules take every number up to 1e-8 for 0 and drop it, even from a divisor."""
    for node in getattr(rule, "_target_pattern", None) or ():
        for constant in node.inputs:
            if hasattr(constant, "_abs_tol"):
                constant._abs_tol = constant._rel_tol = 0.0  # noqa: SLF001
    return rule


def _rooted(rule: Any) -> Any:
    pattern = getattr(rule, "_target_pattern", None)
    outputs: Any = getattr(pattern, "output_nodes", None)
    root = outputs[0].op_identifier() if outputs else None
    if root is None:
        return rule
    alike = all(node.op_identifier() == root and node.inputs[0] is outputs[0].inputs[0] for node in outputs)
    return _RootedRule(rule, root, len(outputs) if len(outputs) > 1 and alike else 1)
