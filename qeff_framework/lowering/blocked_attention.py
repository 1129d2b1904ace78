"""Attention over a cache, computed block by block of the cache's slots.

A step of S tokens has ``Hq * S * C`` scores at once, which for long contexts do not fit into the fast memory of a device. Here
the slots are read in a few blocks of nearly equal length. Each block gives the result of its own softmax, the largest score and
the sum of its exponentials; the results are mixed by these sums, so that the whole is the softmax over all slots.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qeff_framework.contracts import Specialization
from qeff_framework.dialect.functions import attach_functions
from qeff_framework.dialect.names import DOMAIN, Op
from qeff_framework.errors import CompileError
from qeff_framework.lowering.attention import Heads, MaskPolicy, cleared, masked_scores
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import AttentionNode, KVGatherNode, KVUpdateNode, dialect_nodes
from qeff_framework.lowering.passes import DialectPass

_SLOTS = 2


class BlockedAttention(DialectPass[AttentionNode]):
    """Lowers each attention that reads a cache to `blocks` attentions over parts of it. Runs before the cache's own passes.

    The parts are read by ``KVGather``, which later passes lower. Attention of other kinds, such as that of an encoder, is left.

    Raises `CompileError` when a specialization reads fewer slots than there are blocks, where a number of heads is not known, and
    when there are caches and no attention that reads one.
    """

    name = "BlockedAttention"
    version = "1"
    node_type = AttentionNode

    def __init__(self, blocks: int, mask: MaskPolicy, specializations: Sequence[Specialization] = ()) -> None:
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1")
        self._blocks = blocks
        self._mask = mask
        self._specializations = tuple(specializations)
        self.version = f"{self.version} ({blocks}, {mask})"

    def run(self, model: ir.Model) -> bool:
        """Says whether an attention reads a cache."""
        lowered = super().run(model)
        if lowered:
            attach_functions(model)
        elif dialect_nodes(model, KVUpdateNode):
            raise CompileError(
                f"num_kv_blocks={self._blocks}: the caches of this model are not read by the op Attention, since its "
                "code computes attention without Transformers' interface for it; leave num_kv_blocks out"
            )
        return lowered

    def lower(self, node: AttentionNode, edit: GraphEditor) -> ir.Value | None:
        """``[B,Hq,S,Dv]``."""
        reads = [read for value in (node.key, node.value) if (read := _Read.of(value)) is not None]
        if not reads:
            return None
        heads = Heads.of(node)
        if heads is None:
            raise CompileError(
                f"num_kv_blocks={self._blocks}: the numbers of heads of {node.node.name} are not known; leave num_kv_blocks out"
            )
        self._check(reads[0])
        bounds = reads[0].bounds(edit, self._blocks)
        query = edit.op("Mul", node.query, edit.scalar_like(node.scale, node.query))
        mixed = None if node.sinks is None else self._sinks(edit, node.sinks)
        for block in itertools.pairwise(bounds):
            part = self._part(edit, node, heads, query, block)
            mixed = part if mixed is None else _mix(edit, mixed, part)
        assert mixed is not None  # noqa: S101 -- there is at least one block
        assert mixed.result is not None  # noqa: S101 -- sinks are mixed with it
        return mixed.result

    def _check(self, read: _Read) -> None:
        slots = read.slots
        for item in self._specializations:
            count = slots if isinstance(slots, int) else item.dims.get(str(slots))
            if count is not None and count < self._blocks:
                raise CompileError(
                    f"num_kv_blocks={self._blocks} is more than the {count} cache slots that specialization '{item.name}' reads; "
                    f"the largest possible value is {count}"
                )

    def _sinks(self, edit: GraphEditor, sinks: ir.Value) -> _Part:
        """The sinks as a block without a value, with the maximum ``[1,Hq,1,1]``."""
        scale = edit.scalar_like(self._scale, sinks)
        return _Part(maximum=edit.reshape(sinks, (1, -1, 1, 1)), total=scale, result=None)

    @property
    def _scale(self) -> float:
        """A power of two that keeps the sums of all blocks together as small as that of one: FP16 ends at 65504."""
        return 2.0 ** -math.ceil(math.log2(self._blocks))

    def _part(
        self,
        edit: GraphEditor,
        node: AttentionNode,
        heads: Heads,
        query: ir.Value,
        block: tuple[ir.Value, ir.Value],
    ) -> _Part:
        key, value = (_block_of(edit, states, block) for states in (node.key, node.value))
        mask = edit.once(("mask", node.mask, block), lambda: edit.op("Slice", node.mask, *block, edit.int64s(3)))
        if self._mask.clears_unseen:
            key, value = cleared(edit, node, mask, key), cleared(edit, node, mask, value)
        scores = masked_scores(edit, node, heads, self._mask, query=query, key=key, mask=mask)
        if node.op == Op.ATTENTION_BIAS:
            # A block may be hidden by minus infinity as a whole, and the difference of two infinities is no number.
            scores = edit.op("Max", scores, edit.scalar_like(self._mask.hidden, scores))
        axis = edit.int64s(3)
        maximum = edit.op("ReduceMax", scores, axis)
        exponentials = edit.op("Exp", edit.op("Sub", scores, maximum))
        total = edit.op("ReduceSum", exponentials, axis)
        # Divided before the product: the result is then no larger than the values are.
        result = heads.product(edit, edit.op("Div", exponentials, total), value)
        if self._blocks > 1:
            total = edit.op("Mul", total, edit.scalar_like(self._scale, total))
        return _Part(maximum=maximum, total=total, result=result)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Attention over some of the slots."""

    #: ``[B,Hq,S,1]``, or what is broadcast to it: the largest score.
    maximum: ir.Value
    #: Likewise: sum of the exponentials of the scores less the maximum, scaled.
    total: ir.Value
    #: ``[B,Hq,S,Dv]``; `None` for zeros.
    result: ir.Value | None


def _mix(edit: GraphEditor, one: _Part, other: _Part) -> _Part:
    maximum = edit.op("Max", one.maximum, other.maximum)
    totals = [
        edit.op("Mul", part.total, edit.op("Exp", edit.op("Sub", part.maximum, maximum))) for part in (one, other)
    ]
    total = edit.op("Add", *totals)
    results = [
        edit.op("Mul", part.result, edit.op("Div", own, total))
        for part, own in zip((one, other), totals, strict=True)
        if part.result is not None
    ]
    return _Part(maximum=maximum, total=total, result=results[0] if len(results) == 1 else edit.op("Add", *results))


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Keys or values that lie in a cache: all of them, or those at some positions."""

    #: ``[B,H,C,D]`` after the update.
    cache: ir.Value
    #: ``[B,1]`` or `None`.
    batch_index: ir.Value | None = None
    #: ``[L]``; `None` for all slots.
    kv_positions: ir.Value | None = None

    @classmethod
    def of(cls, states: ir.Value) -> _Read | None:
        """How `states` are read; `None` unless they are a cache that was updated, or gathered from one."""
        if KVUpdateNode.making(states) is not None:
            return cls(cache=states)
        gather = KVGatherNode.making(states)
        if gather is None or KVUpdateNode.making(gather.cache) is None:
            return None
        return cls(cache=gather.cache, batch_index=gather.batch_index, kv_positions=gather.kv_positions)

    @property
    def slots(self) -> int | str | None:
        """How many slots are read: a number, a symbol, or `None` when neither is known."""
        value, axis = (self.cache, _SLOTS) if self.kv_positions is None else (self.kv_positions, 0)
        size = value.shape[axis] if value.shape is not None and len(value.shape) > axis else None
        return size if isinstance(size, int) or size is None else size.value

    def bounds(self, edit: GraphEditor, blocks: int) -> tuple[ir.Value, ...]:
        """Where the blocks begin, and where the last one ends: int64 ``[1]`` each. Lengths differ by one at most."""
        slots = self.slots
        if isinstance(slots, int):
            return tuple(edit.int64s(slots * number // blocks) for number in range(blocks + 1))

        def make() -> tuple[ir.Value, ...]:
            count = edit.dim(self.cache, _SLOTS) if self.kv_positions is None else edit.dim(self.kv_positions, 0)
            inner = (
                edit.op("Div", edit.op("Mul", count, edit.int64s(number)), edit.int64s(blocks))
                for number in range(1, blocks)
            )
            return edit.int64s(0), *inner, count

        known: tuple[ir.Value, ...] = edit.once(("bounds", slots or self.kv_positions or self.cache), make)
        return known


def _block_of(edit: GraphEditor, states: ir.Value, block: tuple[ir.Value, ir.Value]) -> ir.Value:
    """The slots of a block of ``states [B,Hkv,C,D]``, read from the cache where they lie in one."""
    read = _Read.of(states)
    if read is None:
        return edit.op("Slice", states, *block, edit.int64s(_SLOTS))
    positions: ir.Value = edit.once(
        ("positions", read.kv_positions, block), lambda: _positions(edit, read.kv_positions, block)
    )

    def make() -> ir.Value:
        if read.batch_index is None:
            part = edit.op(Op.KV_GATHER, read.cache, positions, domain=DOMAIN)
        else:
            part = edit.op(Op.KV_GATHER_CB, read.cache, read.batch_index, positions, domain=DOMAIN)
        part.type = states.type
        if states.shape is not None:
            length = positions.shape[0] if positions.shape is not None else None
            part.shape = ir.Shape([length if axis == _SLOTS else size for axis, size in enumerate(states.shape)])
        return part

    part: ir.Value = edit.once(("part", states, block), make)
    return part


def _positions(edit: GraphEditor, kv_positions: ir.Value | None, block: tuple[ir.Value, ir.Value]) -> ir.Value:
    """The slots ``[L]`` of a block."""
    if kv_positions is not None:
        return edit.op("Slice", kv_positions, *block)
    start, end = (ir.convenience.get_const_tensor(bound) for bound in block)
    if start is not None and end is not None:
        return edit.array(np.arange(start.numpy().item(), end.numpy().item(), dtype=np.int64))
    return edit.op("Range", *(edit.op("Squeeze", bound) for bound in block), edit.int64(1))
