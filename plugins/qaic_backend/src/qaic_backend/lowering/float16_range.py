"""Finite float constants beyond the range of FP16 are moved to its ends: converted as they are, they would become infinite.

Infinities stay, they mean what they say. Integers are not touched.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qaic_backend.lowering.graph import FLOAT16_MAX

_WIDER = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


class Float16Range:
    """Clips initializers and ``Constant`` nodes, those of functions and subgraphs included."""

    name = "Float16Range"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a constant was clipped."""
        clipped = False
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None and (smaller := _clipped(value.const_value)) is not None:
                    value.const_value = smaller
                    clipped = True
        nodes = [*model.graph.all_nodes()]
        for function in model.functions.values():
            nodes.extend(function.all_nodes())
        for node in nodes:
            if node.op_type == "Constant" and not node.domain:
                clipped = _clip_constant(node) or clipped
        return clipped


def _clipped(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
    """The tensor within the range, `None` when it is there already. Reads the weights once."""
    if tensor.dtype not in _WIDER:
        return None
    values = tensor.numpy()
    beyond = np.isfinite(values) & (np.abs(values) > FLOAT16_MAX)
    if not beyond.any():
        return None
    ends = np.copysign(np.asarray(FLOAT16_MAX, values.dtype), values)
    return ir.Tensor(np.where(beyond, ends, values), dtype=tensor.dtype, name=tensor.name)


def _clip_constant(node: ir.Node) -> bool:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if name == "value":
            smaller = _clipped(attribute.as_tensor())
            if smaller is not None:
                node.attributes[name] = ir.AttrTensor(name, smaller)
                return True
        elif name == "value_float" and FLOAT16_MAX < abs(number := attribute.as_float()) < np.inf:
            node.attributes[name] = ir.AttrFloat32(name, float(np.copysign(FLOAT16_MAX, number)))
            return True
    return False
