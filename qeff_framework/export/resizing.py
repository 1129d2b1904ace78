"""Pictures that are made smaller or larger in a way that ONNX has no operator for, as products with matrices of constants."""

from __future__ import annotations

from typing import Final

import onnx_ir
import torch

from qeff_framework.errors import UnsupportedModelError

_MODES: Final = {"cubic": "bicubic", "linear": "bilinear"}


def replace_smoothed_resizes(model: onnx_ir.Model) -> None:
    """Torch aligns corners in another way when it smooths; runtimes compute what the operator's name says.

    Raises:
        UnsupportedModelError: the sizes of such a picture are known only when the program runs.
    """
    graph = model.graph
    for node in list(graph):
        smooths = node.op_type == "Resize" and node.attributes.get_int("antialias", 0) == 1
        if not smooths or node.attributes.get_string("coordinate_transformation_mode", "") != "align_corners":
            continue
        taken, made = node.inputs[0], node.outputs[0]
        old, new = _sizes(taken), _sizes(made)
        if taken is None or len(old) != 2 or len(new) != 2:
            raise UnsupportedModelError("it smooths pictures of any size with aligned corners, which no graph can")
        mode = _MODES[node.attributes.get_string("mode", "linear") or "linear"]
        rows, columns = (_matrix(*pair, mode) for pair in zip(old, new, strict=True))
        left = _constant(graph, f"{made.name}.rows", rows)
        right = _constant(graph, f"{made.name}.columns", columns.T.contiguous())
        narrow = onnx_ir.node("MatMul", [taken, right], name=f"{node.name}.columns")
        whole = onnx_ir.node("MatMul", [left, narrow.outputs[0]], name=f"{node.name}.rows")
        name = made.name
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [narrow, whole], [made], whole.outputs)
        whole.outputs[0].name = name


def _sizes(value: onnx_ir.Value | None) -> list[int]:
    """Height and width; nothing where they are not known."""
    shape = [] if value is None or value.shape is None else list(value.shape)[2:]
    return [size for size in shape if isinstance(size, int)] if len(shape) == 2 else []


def _constant(graph: onnx_ir.Graph, name: str, numbers: torch.Tensor) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(numbers.numpy(), name=name)
    shape, kind = onnx_ir.Shape(list(numbers.shape)), onnx_ir.TensorType(tensor.dtype)
    value = onnx_ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def _matrix(old: int, new: int, mode: str) -> torch.Tensor:
    """The rows of the result, each made of those of the picture."""
    # With one channel or one column torch takes the picture for one whose channels are last, and computes something else.
    each = torch.eye(old + 1, old).reshape(1, old + 1, old, 1).repeat(1, 1, 1, 2)
    made = torch.nn.functional.interpolate(each, size=(new, 2), mode=mode, antialias=True, align_corners=True)
    return made[0, :old, :, 0].T.contiguous()
