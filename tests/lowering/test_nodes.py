"""Views of dialect nodes: every op has one, with the inputs and attributes that its body has."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from qeff_framework.dialect.functions import functions
from qeff_framework.dialect.names import Gate
from qeff_framework.lowering import (
    AttentionNode,
    CausalMaskNode,
    DialectNode,
    KVGatherNode,
    KVUpdateNode,
    MoENode,
    Op,
    QuantizedMatMulNode,
    QuantizedMoENode,
    RMSNormNode,
    dialect_nodes,
)

VIEWS = (
    AttentionNode,
    CausalMaskNode,
    KVGatherNode,
    KVUpdateNode,
    MoENode,
    QuantizedMatMulNode,
    QuantizedMoENode,
    RMSNormNode,
)
#: Views name two inputs by what they are for; the bodies name them by what they are.
OTHER_NAMES = {"bias": "mask"}
FLOATS = {"scale": 0.25, "softcap": 3.0, "epsilon": 1e-5, "alpha": 1.7, "limit": 7.0, "offset": 1.0}
INTS = {"window": 5, "chunk": 8, "activation": 3, "gated": 0, "interleaved": 1, "bits": 8, "input_size": 40}


def node_of(op: Op, **left_out: object) -> ir.Node:
    """A node with every input and attribute that the body has."""
    body = functions()[op]
    names = [*body.attribute, *(attribute.name for attribute in body.attribute_proto)]
    attributes = {name: (FLOATS | INTS)[name] for name in names if name not in left_out}
    values = [ir.Value(name=name) for name in body.input]
    return ir.Node("qeff", op, values, ir.convenience.convert_attributes(attributes), num_outputs=1)


def test_every_op_has_a_body_and_one_view() -> None:
    assert sorted(Op) == sorted(functions())
    assert sorted(op for view in VIEWS for op in view.ops) == sorted(Op)


@pytest.mark.parametrize(("view", "op"), [(view, op) for view in VIEWS for op in view.ops])
def test_a_view_has_the_inputs_and_attributes_of_the_body(view: type[DialectNode], op: Op) -> None:
    node = node_of(op)

    found = view.of(node)

    assert (found.op, found.output) == (op, node.outputs[0])
    for value in node.inputs:
        assert value is not None
        assert getattr(found, OTHER_NAMES.get(str(value.name), str(value.name))) is value
    values = {**vars(found), **(dataclasses.asdict(found.gate) if hasattr(found, "gate") else {})}
    for name, attribute in node.attributes.items():
        assert values[name] == pytest.approx(attribute.value)
    with pytest.raises(ValueError, match="no input"):
        view.of(ir.Node("qeff", op, node.inputs[:-1]))


def test_what_is_left_out_has_the_default_of_the_op() -> None:
    values = [ir.Value() for _ in range(5)]
    assert MoENode.of(ir.Node("qeff", "MoE", values)).gate == Gate()
    assert CausalMaskNode.of(ir.Node("qeff", "CausalMask", values[:2])).window == 0
    with pytest.raises(ValueError, match="no attribute scale"):
        AttentionNode.of(ir.Node("qeff", "Attention", values[:4]))


def test_nodes_of_other_ops_have_no_view() -> None:
    node = ir.Node("", "RMSNorm", [ir.Value(), ir.Value()])
    with pytest.raises(ValueError, match="not one of RMSNorm"):
        RMSNormNode.of(node)
    assert RMSNormNode.making(node.outputs[0]) is None
    assert RMSNormNode.making(ir.Value()) is None
    graph = ir.Graph([], [], nodes=[node, node_of(Op.RMS_NORM)])
    assert [view.node for view in dialect_nodes(graph, RMSNormNode)] == [graph[1]]
