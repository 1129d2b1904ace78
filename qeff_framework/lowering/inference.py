"""Types and shapes of new nodes, so that every pass can read those of every value."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from qeff_framework.lowering.values import has_subgraph

#: Larger constants are no shapes, axes or counts, which are what shapes follow from.
_MAX_ELEMENTS = 32


def infer_outputs(node: ir.Node, opset_imports: Mapping[str, int]) -> None:
    """Gives the outputs of a standard node the types and shapes that follow from its inputs, where they follow from them.

    Outputs of other domains and of loops and conditions, and of nodes that read something without a type, are left as they are.
    """
    if node.domain not in opset_imports or has_subgraph(node):
        return
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        if value.type is None or not value.name:
            return
        types[value.name] = ir.serde.serialize_type(value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(types[value.name], value.shape)
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size <= _MAX_ELEMENTS:
            data[value.name] = ir.serde.serialize_tensor(tensor)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset_imports[node.domain], node.domain)
        inferred = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
        return
    for output in node.outputs:
        if output.name in inferred:
            output.type = ir.serde.deserialize_type_proto_for_type(inferred[output.name])
            output.shape = ir.serde.deserialize_type_proto_for_shape(inferred[output.name])
