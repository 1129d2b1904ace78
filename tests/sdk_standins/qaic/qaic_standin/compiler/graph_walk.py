"""Small helpers to walk ONNX graphs, their subgraphs and local functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

FunctionKey = tuple[str, str]


def functions_by_key(model: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    """Local functions by (domain, name)."""
    return {(function.domain, function.name): function for function in model.functions}


def key_of(node: onnx.NodeProto) -> FunctionKey:
    """The key by which a node calls a local function."""
    return node.domain, node.op_type


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs held by a node's attributes (bodies of If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def nodes_with_bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Every node and, recursively, the nodes of its subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from nodes_with_bodies(graph.node)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the main graph, of the local functions and of all bodies."""
    yield from nodes_with_bodies(model.graph.node)
    for function in model.functions:
        yield from nodes_with_bodies(function.node)


def names_used(node: onnx.NodeProto) -> set[str]:
    """Names of values a node reads, including those that its subgraphs capture."""
    used = {name for name in node.input if name}
    for graph in subgraphs(node):
        defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            used |= names_used(inner) - defined
            defined |= set(inner.output)
        used |= {value.name for value in graph.output} - defined
    return used


def name_of(node: onnx.NodeProto) -> str:
    """The node's name; an unnamed node is known by its first output."""
    return str(node.name or next((name for name in node.output if name), node.op_type))


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that are not initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def rank_of(value: onnx.ValueInfoProto) -> int:
    """Number of dims of a value."""
    return len(value.type.tensor_type.shape.dim)
