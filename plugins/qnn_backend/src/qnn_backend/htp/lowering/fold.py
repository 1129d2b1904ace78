"""With static shapes most of what a graph computes about shapes is constant. It is computed here: the NPU has no ops for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qnn_backend.htp.lowering.graph import OPSET, Writer, constant, graph_of, is_weight, shared_constant, sizes

#: Larger results are weights: those stay as they are.
_MAX_ELEMENTS = 1 << 22
#: The bodies of the dialect nest shapes of shapes; each round resolves one level.
_MAX_ROUNDS = 12


class FoldConstants:
    """Evaluates what does not depend on the inputs, takes known branches of ``If``, infers shapes, removes no-ops."""

    name = "FoldConstants"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether something was evaluated."""
        model.opset_imports[""] = OPSET
        changed = False
        for _ in range(_MAX_ROUNDS):
            common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
            folded = [_fold(model, node) for node in list(model.graph)]
            if not any(folded):
                break
            changed = True
            common_passes.RemoveUnusedNodesPass()(model)
        return changed


def _fold(model: ir.Model, node: ir.Node) -> bool:
    if node.graph is None or node.domain:
        return False
    if node.op_type == "If":
        return _take_branch(node)
    if node.op_type in ("Identity", "Dropout") or _is_same_reshape(model, node):
        return _bypass(node)
    known = _known_outputs(node)
    if known is None:
        return False
    for value, content in zip(node.outputs, known, strict=True):
        if value.is_graph_output():
            return False
        value.replace_all_uses_with(shared_constant(model, content))
    graph_of(node).remove(node, safe=True)
    return True


def _known_outputs(node: ir.Node) -> list[NDArray[np.generic]] | None:
    """The outputs as arrays when they are the same for every input of the graph."""
    if node.op_type in ("Shape", "Size"):
        shape = sizes(node.inputs[0]) if node.inputs[0] is not None else None
        if shape is None:
            return None
        return _evaluate(node, [np.broadcast_to(np.float32(0), shape)])
    if node.op_type == "CastLike":
        return _cast_like(node)
    present = [value for value in node.inputs if value is not None]
    if node.op_type == "Constant" or (present and all(_is_known(value) for value in present)):
        if any((known := sizes(out)) is not None and int(np.prod(known)) > _MAX_ELEMENTS for out in node.outputs):
            return None
        return _evaluate(node, [None if value is None else constant(value) for value in node.inputs])
    return None


def _cast_like(node: ir.Node) -> list[NDArray[np.generic]] | None:
    """Only the type of the second input counts, which is known although its numbers are not."""
    value, like = node.inputs[0], node.inputs[1]
    content = constant(value) if value is not None and _is_known(value) else None
    if content is None or like is None or like.dtype is None:
        return None
    return [content.astype(like.dtype.numpy())]


def _is_known(value: ir.Value) -> bool:
    if not is_weight(value):
        return False
    shape = sizes(value)
    return shape is not None and int(np.prod(shape)) <= _MAX_ELEMENTS


def _evaluate(node: ir.Node, inputs: Sequence[NDArray[np.generic] | None]) -> list[NDArray[np.generic]]:
    feeds = {str(value.name): content for value, content in zip(node.inputs, inputs, strict=True) if value is not None}
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node)],
        "constant",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(content.dtype), None)
            for name, content in feeds.items()
            if content is not None
        ],
        [onnx.ValueInfoProto(name=value.name) for value in node.outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, feeds)]


def _take_branch(node: ir.Node) -> bool:
    condition = constant(node.inputs[0])
    if condition is None:
        return False
    branch = node.attributes["then_branch" if bool(condition) else "else_branch"].as_graph()
    results = list(branch.outputs)
    inner = list(branch)
    branch.outputs.clear()  # A value can be the output of one graph only, and the branch may lie in another one.
    branch.remove(inner)
    graph_of(node).insert_before(node, inner)
    for before, after in zip(node.outputs, results, strict=True):
        if before.is_graph_output():
            after.name = before.name
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    return True


def _is_same_reshape(model: ir.Model, node: ir.Node) -> bool:
    """A reshape, expansion or slice to the shape that is there already. A reshape is also put into its plainest form."""
    if node.op_type not in ("Reshape", "Expand", "Slice", "Squeeze", "Unsqueeze", "Cast"):
        return False
    before, after = node.inputs[0], node.outputs[0]
    if before is None or sizes(before) is None or sizes(after) is None:
        return False
    if node.op_type == "Cast":
        return before.dtype == after.dtype and before.dtype is not None
    if node.op_type == "Slice":
        return sizes(before) == sizes(after) and all(_is_forward(node))
    if node.op_type == "Reshape":
        _make_plain(model, node)
    return sizes(before) == sizes(after)


def _is_forward(node: ir.Node) -> list[bool]:
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.array([1])
    return [False] if steps is None else [int(step) > 0 for step in np.atleast_1d(steps)]


def _make_plain(model: ir.Model, node: ir.Node) -> None:
    """The compiler refuses ``allowzero``; static sizes need neither it nor -1."""
    target = sizes(node.outputs[0])
    if target is not None and 0 not in target:
        node.attributes.pop("allowzero", None)
        node.replace_input_with(1, Writer(model, node).ints(*target))


def _bypass(node: ir.Node) -> bool:
    """An output of the graph keeps its node: it cannot be another value."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or after.is_graph_output():
        return False
    after.replace_all_uses_with(before)
    graph_of(node).remove(node, safe=True)
    return True
