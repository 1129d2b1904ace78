"""Each key head several times in the caches, so that the heads can be divided among more devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qeff_framework.contracts import TensorSpec
from qeff_framework.errors import CompileError
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import AttentionNode, KVGatherNode, KVUpdateNode, dialect_nodes
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import readers, static_dim

_HEADS = 1


class ReplicateKVHeads(GraphPass):
    """Lets each head of the caches that attention reads stand there `times` times, side by side. Runs before the other passes.

    The states become ``[B, times * H, C, D]``: `lowered_specs` gives the program's interface after it. What a query head sees is
    the same. New keys and values are repeated before they are written; weights stay as they are.

    Raises `CompileError` where the query heads are no multiple of the replicated ones, where something else than attention reads
    such a cache, and when there are caches and no attention that reads one. A graph without caches of attention is left as it is.
    """

    name = "ReplicateKVHeads"
    version = "1"

    def __init__(self, times: int) -> None:
        if times < 1:
            raise ValueError(f"times={times} must be at least 1")
        self._times = times
        self.version = f"{self.version} ({times})"

    def run(self, model: ir.Model) -> bool:
        """Says whether a cache was widened."""
        caches = self._caches(model)
        if not caches and dialect_nodes(model, KVUpdateNode):
            raise CompileError(
                f"replicate_kv_heads={self._times}: the caches of this model are not read by the op Attention, since its "
                "code computes attention without Transformers' interface for it; leave replicate_kv_heads out"
            )
        for cache in caches:
            update = cache.update
            edit = GraphEditor(model, update.node)
            update.node.replace_input_with(1, self._repeated(edit, cache))
            for value in cache.values:
                if value.shape is not None:
                    value.shape = ir.Shape(
                        [cache.heads * self._times if axis == _HEADS else size for axis, size in enumerate(value.shape)]
                    )
        return bool(caches)

    def _repeated(self, edit: GraphEditor, cache: _Cache) -> ir.Value:
        """``updates [B,H,S,D]`` as ``[B,times * H,S,D]``."""
        column = edit.op("Unsqueeze", cache.update.updates, edit.int64s(2))
        spread = edit.op("Expand", column, edit.int64s(1, 1, self._times, 1, 1))
        return edit.op("Reshape", spread, edit.int64s(0, cache.heads * self._times, -1, cache.size))

    def _caches(self, model: ir.Model) -> list[_Cache]:
        found: dict[ir.Node, _Cache] = {}
        for attention in dialect_nodes(model, AttentionNode):
            updates = [_update_of(value) for value in (attention.key, attention.value)]
            if not any(updates):
                continue
            caches = [self._cache(update) for update in updates if update is not None]
            if len(caches) < len(updates):
                raise self._refusal(attention.node, "keys or values that do not lie in a cache")
            heads = static_dim(attention.query, _HEADS)
            for cache in caches:
                if heads is None or heads % (cache.heads * self._times):
                    raise CompileError(
                        f"replicate_kv_heads={self._times}: the {heads} query heads of {attention.node.name} are no multiple of "
                        f"{self._times} times {cache.heads} key heads; the factors that fit divide {(heads or 0) // cache.heads}"
                    )
                found[cache.update.node] = cache
        return list(found.values())

    def _cache(self, update: KVUpdateNode) -> _Cache:
        heads, size = static_dim(update.cache, _HEADS), static_dim(update.updates, 3)
        if heads is None or size is None:
            raise self._refusal(update.node, "a cache without a known number of heads")
        if not (update.cache.is_graph_input() and readers(update.cache) == {update.node}):
            raise self._refusal(update.node, "a cache that is updated more than once")
        gathers = [KVGatherNode.of(node) for node in _sorted(readers(update.output)) if KVGatherNode.views(node)]
        values = (update.cache, update.output, *(gather.output for gather in gathers))
        for value in values[1:]:
            for node, position in value.uses():
                takes_part = AttentionNode.views(node) and position in (1, 2)
                if not takes_part and not KVGatherNode.views(node) and node.op_type not in ("Shape", "Size"):
                    raise self._refusal(node, "a cache that is not read by attention alone")
        return _Cache(update=update, heads=heads, size=size, values=values)

    def _refusal(self, node: ir.Node, what: str) -> CompileError:
        return CompileError(
            f"replicate_kv_heads={self._times}: {node.name} of type {node.op_type} has {what}, whose heads cannot be replicated; "
            "leave replicate_kv_heads out"
        )


@dataclass(frozen=True, kw_only=True)
class _Cache:
    update: KVUpdateNode
    #: H and D of ``[B,H,C,D]``.
    heads: int
    size: int
    #: Everything of that form: before and after the update, and what is gathered from it.
    values: Sequence[ir.Value]


def _update_of(states: ir.Value) -> KVUpdateNode | None:
    gather = KVGatherNode.making(states)
    return KVUpdateNode.making(states if gather is None else gather.cache)


def _sorted(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    return iter(sorted(nodes, key=lambda node: str(node.outputs[0].name)))


def lowered_specs(values: Iterable[ir.Value], specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs of an export's inputs or outputs with the static sizes that passes have given the graph's values of that name."""
    shapes = {value.name: value.shape for value in values}
    return tuple(
        replace(
            spec,
            shape=tuple(dim if isinstance(dim, int) else told for dim, told in zip(shape, spec.shape, strict=True)),
        )
        if (shape := shapes.get(spec.name)) is not None and len(shape) == len(spec.shape)
        else spec
        for spec in specs
    )
