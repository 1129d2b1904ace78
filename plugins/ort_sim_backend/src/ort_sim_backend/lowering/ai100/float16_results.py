"""Every result of the graph and every constant becomes a number of FP16.

Each op computes in float32 and its result is rounded: what a device does that accumulates in more than FP16 and stores in FP16.
ONNX Runtime would do the same for a graph of FP16 tensors, since its CPU kernels for most ops are those of float32, but it drops
the rounding between two such ops.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ort_sim_backend.number_formats import round_float16
from qeff_framework.lowering import (
    DOMAIN,
    GraphPass,
    computed_tensor,
    graph_of,
    has_subgraph,
    nodes_named,
    replace_content,
    weights,
)

#: Ops whose results are numbers that they have read: moved, chosen, or with another sign.
_MOVING = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Split", "Concat"),
        *(
            "Slice",
            "Gather",
            "GatherND",
            "GatherElements",
            "ScatterND",
            "ScatterElements",
            "Where",
            "Compress",
            "Trilu",
        ),
        *("Max", "Min", "Clip", "Relu", "Abs", "Neg", "ReduceMax", "ReduceMin", "TopK", "Sign"),
    }
)
_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


class Float16Results(GraphPass):
    """Rounds constants when they are written, and results by a ``Cast`` to FP16 and back, those in subgraphs included.

    A cast pair is one rounding: ONNX Runtime keeps it, since the first cast loses precision.

    Args:
        fp32_nodes: first output names of nodes that stay in float32: what one of them makes of another's result is not rounded in
            between, and neither are constants that only they read.
    """

    name = "Float16Results"
    version = "1"

    def __init__(self, fp32_nodes: Collection[str] = ()) -> None:
        self._fp32_nodes = frozenset(fp32_nodes)

    def run(self, model: ir.Model) -> bool:
        """Always changes the model. Types of results that are not known yet are inferred first.

        Raises:
            CompileError: the graph lacks one of `fp32_nodes`.
        """
        common_passes.ShapeInferencePass()(model)
        wide = nodes_named(model, self._fp32_nodes, option="fp32_nodes")
        for value in weights(model):
            if value.dtype in _WIDE and not (value.uses() and all(use.node in wide for use in value.uses())):
                _round_constant(value)
        for node in list(model.graph.all_nodes()):
            if node.domain == DOMAIN or has_subgraph(node) or (not node.domain and node.op_type in _MOVING):
                continue
            for output in node.outputs:
                if _is_wide(output, node):
                    _round_result(node, output, wide if node in wide else frozenset())
        return True


def _is_wide(output: ir.Value, node: ir.Node) -> bool:
    """Whether it is a float of more than 16 bits. Ops that shape inference does not know give what they read first."""
    if output.dtype is not None:
        return output.dtype in _WIDE
    read = next((value.dtype for value in node.inputs if value is not None), None)
    return read in _WIDE


def _round_constant(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    dtype = tensor.dtype.numpy()
    rounded = computed_tensor(
        str(tensor.name or value.name),
        tensor.shape.numpy(),
        dtype,
        lambda: round_float16(tensor.numpy()).astype(dtype),
    )
    replace_content(value, ir.Tensor(rounded.numpy(), name=rounded.name) if tensor.size == 1 else rounded)


def _round_result(node: ir.Node, output: ir.Value, unrounded: Collection[ir.Node]) -> None:
    """Every reader but those in `unrounded` gets the rounded numbers."""
    graph, dtype = graph_of(node), output.dtype or ir.DataType.FLOAT
    is_output, name = output.is_graph_output(), output.name
    half = ir.node("Cast", [output], {"to": ir.DataType.FLOAT16.value})
    back = ir.node("Cast", half.outputs, {"to": dtype.value})
    narrow, result = half.outputs[0], back.outputs[0]
    # A name that a graph gives may be taken in the graphs around it; these are made of one that is not.
    narrow.name, result.name = f"{name}/float16", f"{name}/rounded"
    narrow.type, narrow.shape = ir.TensorType(ir.DataType.FLOAT16), output.shape
    result.type, result.shape = ir.TensorType(dtype), output.shape
    for use in list(output.uses()):
        if use.node is not half and use.node not in unrounded:
            use.node.replace_input_with(use.idx, result)
    if is_output:
        number = graph.outputs.index(output)
        graph.outputs[number] = result
        output.name, result.name = f"{name}_before_rounding", name
    graph.insert_after(node, [half, back])
