"""Typed views of dialect nodes: inputs by name, attributes parsed once.

A view is made from a node when it is needed and read while the node is there. Replacing other nodes may change the inputs of a
node, so a view is not kept across replacements.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeVar

import onnx_ir as ir

from qeff_framework.dialect.names import DOMAIN, Gate, Op
from qeff_framework.lowering.values import operand, require_shape


@dataclass(frozen=True, kw_only=True)
class DialectNode:
    """A node of the dialect. Subclasses name the ops that they view."""

    ops: ClassVar[tuple[Op, ...]]

    node: ir.Node

    @classmethod
    def of(cls, node: ir.Node) -> Self:
        """The view of `node`. Raises `ValueError` when the node is of another op or lacks an input or an attribute."""
        if not cls.views(node):
            raise ValueError(f"node {node.name} is {node.domain}::{node.op_type}, not one of {', '.join(cls.ops)}")
        return cls._parse(node)

    @classmethod
    def making(cls, value: ir.Value) -> Self | None:
        """The view of the node that computes `value`, if it is of one of these ops."""
        node = value.producer()
        return cls.of(node) if node is not None and cls.views(node) else None

    @classmethod
    def views(cls, node: ir.Node) -> bool:
        """Whether `node` is of one of these ops."""
        return node.domain == DOMAIN and node.op_type in cls.ops

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        raise NotImplementedError

    @property
    def op(self) -> Op:
        """Which of `ops` it is."""
        return Op(self.node.op_type)

    @property
    def output(self) -> ir.Value:
        """The only output."""
        return self.node.outputs[0]


AnyNode = TypeVar("AnyNode", bound=DialectNode)


def dialect_nodes(graph: ir.Model | ir.Graph, node_type: type[AnyNode]) -> list[AnyNode]:
    """Views of the nodes of one type, in graph order. Of a model, those of its main graph."""
    nodes = graph.graph if isinstance(graph, ir.Model) else graph
    return [node_type.of(node) for node in nodes if node_type.views(node)]


def _required_float(node: ir.Node, name: str) -> float:
    value = node.attributes.get_float(name)
    if value is None:
        raise ValueError(f"node {node.name} of type {node.op_type} has no attribute {name}")
    return value


def _required_int(node: ir.Node, name: str) -> int:
    value = node.attributes.get_int(name)
    if value is None:
        raise ValueError(f"node {node.name} of type {node.op_type} has no attribute {name}")
    return value


@dataclass(frozen=True, kw_only=True)
class KVUpdateNode(DialectNode):
    """Writes ``updates [B,H,S,D]`` into ``cache [B,H,C,D]``, or ``[F,H,C,D]`` with a batch index."""

    ops = (Op.KV_UPDATE, Op.KV_UPDATE_CB)

    cache: ir.Value
    updates: ir.Value
    #: ``[B,S]``; a negative position writes nothing.
    position_ids: ir.Value
    #: ``[B,1]``: the cache row of each row of the step; `None` when the rows are those of the cache.
    batch_index: ir.Value | None

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        return cls(
            node=node,
            cache=operand(node, 0),
            updates=operand(node, 1),
            position_ids=operand(node, 2),
            batch_index=operand(node, 3) if node.op_type == Op.KV_UPDATE_CB else None,
        )


@dataclass(frozen=True, kw_only=True)
class KVGatherNode(DialectNode):
    """Reads the slots ``kv_positions [L]`` of a cache: ``[B,H,L,D]``."""

    ops = (Op.KV_GATHER, Op.KV_GATHER_CB)

    cache: ir.Value
    #: ``[B,1]``: the cache row of each row of the step; `None` when the rows are those of the cache.
    batch_index: ir.Value | None
    kv_positions: ir.Value

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        by_index = node.op_type == Op.KV_GATHER_CB
        return cls(
            node=node,
            cache=operand(node, 0),
            batch_index=operand(node, 1) if by_index else None,
            kv_positions=operand(node, 2 if by_index else 1),
        )


@dataclass(frozen=True, kw_only=True)
class CausalMaskNode(DialectNode):
    """Which of the slots ``kv_positions [C]`` each token of ``position_ids [B,S]`` sees: bool ``[B,1,S,C]``."""

    ops = (Op.CAUSAL_MASK,)

    position_ids: ir.Value
    kv_positions: ir.Value
    #: Slots that a token sees, its own included; 0 for all.
    window: int
    #: Length of the chunks that tokens do not see beyond; 0 for none.
    chunk: int

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        return cls(
            node=node,
            position_ids=operand(node, 0),
            kv_positions=operand(node, 1),
            window=node.attributes.get_int("window", 0),
            chunk=node.attributes.get_int("chunk", 0),
        )


@dataclass(frozen=True, kw_only=True)
class AttentionNode(DialectNode):
    """Grouped-query attention of ``query [B,Hq,S,D]`` over ``key [B,Hkv,C,D]`` and ``value [B,Hkv,C,Dv]``."""

    ops = (Op.ATTENTION, Op.ATTENTION_BIAS, Op.ATTENTION_SINKS)

    query: ir.Value
    key: ir.Value
    value: ir.Value
    #: Bool ``[B|1,1|Hq,S,C]``; of `Op.ATTENTION_BIAS` floats that are added to the scores.
    mask: ir.Value
    #: ``[Hq]``: one more logit for each head, of `Op.ATTENTION_SINKS`.
    sinks: ir.Value | None
    scale: float
    #: Scores become ``softcap * tanh(scores / softcap)``; 0 for no cap.
    softcap: float

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        return cls(
            node=node,
            query=operand(node, 0),
            key=operand(node, 1),
            value=operand(node, 2),
            mask=operand(node, 3),
            sinks=operand(node, 4) if node.op_type == Op.ATTENTION_SINKS else None,
            scale=_required_float(node, "scale"),
            softcap=node.attributes.get_float("softcap", 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class RMSNormNode(DialectNode):
    """Root-mean-square norm of ``hidden [...,N]`` over the last axis, computed in float32, times ``weight [N]``."""

    ops = (Op.RMS_NORM,)

    hidden: ir.Value
    weight: ir.Value
    epsilon: float

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        return cls(
            node=node,
            hidden=operand(node, 0),
            weight=operand(node, 1),
            epsilon=_required_float(node, "epsilon"),
        )


@dataclass(frozen=True, kw_only=True)
class MoENode(DialectNode):
    """The weighted sum of what K chosen of E experts compute of each token of ``hidden [T,H]``."""

    ops = (Op.MOE, Op.MOE_BIAS)

    hidden: ir.Value
    #: int64 ``[T,K]``.
    expert_ids: ir.Value
    #: ``[T,K]``.
    expert_weights: ir.Value
    #: ``[E,H,U]``.
    up: ir.Value
    #: ``[E,I,H]``.
    down: ir.Value
    #: ``[E,U]``.
    up_bias: ir.Value | None
    #: ``[E,H]``.
    down_bias: ir.Value | None
    #: What happens between the two products.
    gate: Gate

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        has_bias = node.op_type == Op.MOE_BIAS
        return cls(
            node=node,
            hidden=operand(node, 0),
            expert_ids=operand(node, 1),
            expert_weights=operand(node, 2),
            up=operand(node, 3),
            down=operand(node, 4),
            up_bias=operand(node, 5) if has_bias else None,
            down_bias=operand(node, 6) if has_bias else None,
            gate=_gate_of(node),
        )


def _gate_of(node: ir.Node) -> Gate:
    known = {field.name for field in fields(Gate)}
    return Gate(**{name: attribute.value for name, attribute in node.attributes.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class QuantizedMatMulNode(DialectNode):
    """``hidden [...,K]`` times a matrix ``[K,N]`` that lies in blocks of 4 or 8 bits; the layout is that of ``MatMulNBits``."""

    ops = (Op.QUANTIZED_MATMUL,)

    hidden: ir.Value
    #: uint8 ``[N,blocks,bytes]``, for each output the levels of its inputs; of two in a byte the first has the low bits.
    levels: ir.Value
    #: ``[N,blocks]``.
    scales: ir.Value
    #: uint8 ``[N,blocks]``, one in a byte: the level that stands for 0.
    zero_points: ir.Value
    #: 4 or 8.
    bits: int
    #: K; the last block may reach beyond it.
    input_size: int

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        return cls(
            node=node,
            hidden=operand(node, 0),
            levels=operand(node, 1),
            scales=operand(node, 2),
            zero_points=operand(node, 3),
            bits=_required_int(node, "bits"),
            input_size=_required_int(node, "input_size"),
        )

    @property
    def output_size(self) -> int:
        """N."""
        return require_shape(self.levels)[0]

    @property
    def block_size(self) -> int:
        """Adjacent inputs with one scale."""
        return require_shape(self.levels)[2] * 8 // self.bits


@dataclass(frozen=True, kw_only=True)
class QuantizedMoENode(DialectNode):
    """`MoENode` whose matrices lie in blocks of 4 or 8 bits, of one size for both; the layout is that of ``QMoE``."""

    ops = (Op.QUANTIZED_MOE, Op.QUANTIZED_MOE_BIAS)

    hidden: ir.Value
    #: int64 ``[T,K]``.
    expert_ids: ir.Value
    #: ``[T,K]``.
    expert_weights: ir.Value
    #: uint8 ``[E,U,blocks,bytes]``, for each output the levels of its H inputs; of two in a byte the first has the low bits.
    up_levels: ir.Value
    #: ``[E,U,blocks]``.
    up_scales: ir.Value
    #: uint8 ``[E,U,blocks]``, one in a byte: the level that stands for 0.
    up_zero_points: ir.Value
    #: uint8 ``[E,H,blocks,bytes]``, for each output the levels of its I inputs.
    down_levels: ir.Value
    #: ``[E,H,blocks]``.
    down_scales: ir.Value
    #: uint8 ``[E,H,blocks]``.
    down_zero_points: ir.Value
    #: ``[E,U]``.
    up_bias: ir.Value | None
    #: ``[E,H]``.
    down_bias: ir.Value | None
    #: 4 or 8.
    bits: int
    #: What happens between the two products.
    gate: Gate

    @classmethod
    def _parse(cls, node: ir.Node) -> Self:
        has_bias = node.op_type == Op.QUANTIZED_MOE_BIAS
        return cls(
            node=node,
            hidden=operand(node, 0),
            expert_ids=operand(node, 1),
            expert_weights=operand(node, 2),
            up_levels=operand(node, 3),
            up_scales=operand(node, 4),
            up_zero_points=operand(node, 5),
            down_levels=operand(node, 6),
            down_scales=operand(node, 7),
            down_zero_points=operand(node, 8),
            up_bias=operand(node, 9) if has_bias else None,
            down_bias=operand(node, 10) if has_bias else None,
            bits=_required_int(node, "bits"),
            gate=_gate_of(node),
        )

    @property
    def hidden_size(self) -> int:
        """H."""
        return require_shape(self.down_levels)[1]

    @property
    def inner_size(self) -> int:
        """I."""
        return require_shape(self.up_levels)[1] // (2 if self.gate.gated else 1)

    @property
    def block_size(self) -> int:
        """Adjacent inputs with one scale."""
        return require_shape(self.up_levels)[3] * 8 // self.bits
