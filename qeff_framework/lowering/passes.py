"""Bases of lowering passes: an onnx_ir pass that is a transform of the plugin API as well."""

from __future__ import annotations

import abc
from collections.abc import Hashable
from typing import Any, ClassVar, Generic

import onnx_ir as ir

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import AnyNode


class PassResult(ir.passes.PassResult):
    """True when the model was modified."""

    def __bool__(self) -> bool:
        return self.modified


class GraphPass(ir.passes.InPlacePass):
    """A pass over a model. A subclass has a name and a version and implements `run`."""

    #: Unique within the backend; part of cache keys together with `version`.
    name: str
    #: Change it whenever the result changes.
    version: str

    @abc.abstractmethod
    def run(self, model: ir.Model) -> bool:
        """Changes `model` in place; says whether it changed anything."""

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass; called by onnx_ir."""
        return PassResult(model, self.run(model))


class DialectPass(GraphPass, Generic[AnyNode]):
    """Lowers the nodes of one type, in subgraphs as well. A subclass names the type and implements `lower`.

    Example::

        class FlashAttention(DialectPass[AttentionNode]):
            name = "FlashAttention"
            version = "1"
            node_type = AttentionNode

            def lower(self, node: AttentionNode, edit: GraphEditor) -> ir.Value | None:
                if node.softcap or node.sinks is not None:
                    return None
                return edit.op("FlashAttention", node.query, node.key, node.value, node.mask, domain="acme")
    """

    #: `Any`: a class variable cannot depend on the type parameter.
    node_type: ClassVar[Any]

    @abc.abstractmethod
    def lower(self, node: AnyNode, edit: GraphEditor) -> ir.Value | None:
        """Writes what takes the place of `node` and returns its output; `None` leaves the node as it is.

        `edit` writes in front of `node`. What decides is looked at first: a node that is left must have had nothing written.
        """

    def run(self, model: ir.Model) -> bool:
        """Lowers each node in graph order."""
        shared: dict[Hashable, Any] = {}
        lowered = False
        for node in [node for node in model.graph.all_nodes() if self.node_type.views(node)]:
            edit = GraphEditor(model, node, shared)
            new = self.lower(self.node_type.of(node), edit)
            if new is not None:
                edit.replace(node, new)
                lowered = True
            elif edit.written:
                raise RuntimeError(f"{self.name} left {node.name}, but wrote {len(edit.written)} nodes for it")
        return lowered
