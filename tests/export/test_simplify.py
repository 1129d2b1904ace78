from __future__ import annotations

from types import SimpleNamespace

import onnx
import onnx_ir
import onnxscript.optimizer
import torch

from qeff_framework.export.simplify import _RootedRule, _rules, simplify
from qeff_framework.export.trace import quiet_exporter


class _Redundant(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.transpose(torch.transpose(x, 0, 1), 0, 1) * 1.0 + 0.0
        y = y.unsqueeze(0).unsqueeze(0).reshape(-1).reshape(x.shape[0], -1)
        y = torch.relu(torch.clamp(y, -1.0, 1.0))
        return torch.matmul(y, torch.ones(4, 4) + 1.0) + torch.full((4,), 3.0)


def test_the_graph_is_that_of_the_whole_optimizer() -> None:
    with quiet_exporter():
        shapes = ({0: torch.export.Dim("rows", min=1)},)
        program = torch.export.export(_Redundant(), (torch.zeros(3, 4),), dynamic_shapes=shapes, strict=False)
        converted = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert converted is not None
    ours, theirs = converted.model, converted.model.clone()
    before = len(_nodes(ours))
    simplify(ours, should_fold=lambda node: None)
    onnxscript.optimizer.optimize_ir(theirs, inline=False)
    assert _nodes(ours) == _nodes(theirs)
    assert len(_nodes(ours)) < before


def test_a_rule_for_two_readers_of_a_tensor_is_tried_only_where_there_are_two() -> None:
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 20]>
        halves (float[2, 8] x, float[2, 8] z) => (float[2, 4] y, float[2, 4] w, float[2, 8] v)
        <int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] axis = {1}> {
            first = Slice (x, zero, four, axis)
            second = Slice (x, four, eight, axis)
            y = Add (second, first)
            w = Slice (z, zero, four, axis)
            v = Relu (z)
        }"""
    )
    tried: list[str | None] = []
    rule = SimpleNamespace(try_rewrite=lambda *args: tried.append(args[2].outputs[0].name))
    for node in model.graph:
        _RootedRule(rule, ("", "Slice", ""), 2).try_rewrite(model, model.graph, node)
    assert tried == ["first", "second"]
    assert [each._readers for each in _rules().rules if getattr(each, "_readers", 1) > 1] == [2]


def test_two_readers_of_a_tensor_that_become_reshapes_keep_their_shapes() -> None:
    """The optimizer's rule names both shapes alike, and the second took the place of the first: no runtime read the graph."""
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 20]>
        flattened (float[2, 3, 4] x) => (float[2, 12] y, float[6, 4] z) {
            relu = Relu (x)
            y = Flatten <axis = 1> (relu)
            z = Flatten <axis = 2> (relu)
        }"""
    )
    simplify(model, should_fold=lambda node: None)
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    assert [node.op_type for node in model.graph] == ["Relu", "Reshape", "Reshape"]


class _SmallNumbers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 1e-9) * 1.000001 / (x + 1e-15)


def test_a_small_number_stays_and_a_factor_near_one() -> None:
    with quiet_exporter():
        program = torch.export.export(_SmallNumbers(), (torch.zeros(3),), strict=False)
        converted = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert converted is not None
    simplify(converted.model, should_fold=lambda node: None)
    assert [node.op_type for node in converted.model.graph] == ["Sub", "Mul", "Add", "Div"]


def _nodes(model: onnx_ir.Model) -> list[object]:
    """Each node with its inputs; a constant stands for itself, since equal ones may have been merged under either name."""

    def name(value: onnx_ir.Value | None) -> object:
        if value is None or value.const_value is None:
            return value and value.name
        return value.const_value.numpy().tolist()

    return [(node.op_type, [name(value) for value in node.inputs], node.outputs[0].name) for node in model.graph]
