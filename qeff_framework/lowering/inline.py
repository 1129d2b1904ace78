"""Dialect ops become their bodies in standard ops."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qeff_framework.dialect.names import DOMAIN, Op
from qeff_framework.lowering.passes import GraphPass


class InlineDialect(GraphPass):
    """Inlines the dialect ops `only`, or all but `keep`, by default all of them, and removes bodies that are called no more.

    When no dialect op is left the domain is removed as well: compilers refuse models that import one that they do not know.
    """

    name = "InlineDialect"
    version = "2"

    def __init__(self, only: Collection[Op] | None = None, *, keep: Collection[Op] = ()) -> None:
        if only is not None and keep:
            raise ValueError("InlineDialect takes only or keep, not both")
        self._only = frozenset(Op) - frozenset(keep) if only is None else frozenset(only)
        if only is not None:
            self.version = f"{self.version} ({' '.join(sorted(only))})"
        elif keep:
            self.version = f"{self.version} (without {' '.join(sorted(keep))})"

    def run(self, model: ir.Model) -> bool:
        """Says whether a function of the dialect was inlined or removed."""
        known = [identifier for identifier in model.functions if identifier[0] == DOMAIN]
        if not known and DOMAIN not in model.opset_imports:
            return False
        called = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
        inlined = {name for name in called if name in self._only}
        if inlined:
            common_passes.InlinePass(criteria=lambda body: body.domain == DOMAIN and body.name in inlined)(model)
        kept = called - inlined
        removed = [identifier for identifier in known if identifier[1] not in kept]
        for identifier in removed:
            model.functions.pop(identifier, None)
        if not kept:
            model.opset_imports.pop(DOMAIN, None)
        if inlined:
            common_passes.RemoveUnusedNodesPass()(model)
        return bool(inlined or removed or not kept)
