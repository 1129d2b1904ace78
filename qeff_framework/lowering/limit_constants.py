"""Constants beyond what a device can hold are moved into its range: converted as they are, they would become infinite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.stored_weights import StoredWeight
from qeff_framework.lowering.weights import computed_tensor, replace_content, weights

#: Larger tensors are computed when they are written.
_SMALL = 1 << 20
_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers below `lowest` become `low`, those above `highest` become `high`."""

    lowest: float
    low: float
    highest: float = np.inf
    high: float = np.inf
    #: Infinities are moved as well.
    infinities: bool = True

    @property
    def spare_float16(self) -> bool:
        """Whether no finite number of float16 is moved, and no infinity."""
        largest = float(np.finfo(np.float16).max)
        return self.lowest <= -largest and self.highest >= largest and not self.infinities


class LimitConstants(GraphPass):
    """Moves the numbers of float initializers and ``Constant`` nodes, those of functions and subgraphs included.

    Integers, and floats of 16 and fewer bits except bfloat16, stay as they are. Tensors of more than `max_elements` are weights:
    they are not read. Without it every weight is read once.
    """

    name = "LimitConstants"
    version = "1"

    def __init__(self, limits: Limits, *, max_elements: int | None = None) -> None:
        self._limits, self._max_elements = limits, max_elements
        self.version = f"{self.version} ({limits.lowest:g}:{limits.low:g} {limits.highest:g}:{limits.high:g})"

    def run(self, model: ir.Model) -> bool:
        """Says whether a constant was changed."""
        changed = False
        for value in weights(model):
            limited = None if value.const_value is None else self._limited(value.const_value)
            if limited is not None:
                replace_content(value, limited)
                changed = True
        functions = (node for function in model.functions.values() for node in function.all_nodes())
        for node in (*model.graph.all_nodes(), *functions):
            if node.op_type == "Constant" and not node.domain:
                changed = self._limit_node(node) or changed
        return changed

    def _limited(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        """The tensor within the limits; `None` when it is there already."""
        if tensor.dtype not in _WIDE or (self._max_elements is not None and tensor.size > self._max_elements):
            return None
        if not self._has_beyond(tensor):
            return None
        if tensor.size <= _SMALL:
            return ir.Tensor(self._moved(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
        dtype, shape = tensor.dtype.numpy(), tensor.shape.numpy()
        return computed_tensor(str(tensor.name), shape, dtype, lambda: self._moved(tensor.numpy()))

    def _has_beyond(self, tensor: ir.TensorProtocol) -> bool:
        if not isinstance(tensor, StoredWeight):
            return bool(self._beyond(tensor.numpy()).any())
        if tensor.is_hole() or (tensor.narrow_dtype == ir.DataType.FLOAT16 and self._limits.spare_float16):
            return False
        # A piece at a time: a table of embeddings is gigabytes wide.
        return any(bool(self._beyond(piece).any()) for piece in tensor.unordered_pieces())

    def _beyond(self, content: NDArray[Any]) -> NDArray[np.bool_]:
        beyond: NDArray[np.bool_] = (content < self._limits.lowest) | (content > self._limits.highest)
        return beyond if self._limits.infinities else beyond & np.isfinite(content)

    def _moved(self, content: NDArray[Any]) -> NDArray[Any]:
        ends = np.where(content < 0, self._limits.low, self._limits.high)
        return np.where(self._beyond(content), ends, content).astype(content.dtype)

    def _limit_node(self, node: ir.Node) -> bool:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if name == "value":
                limited = self._limited(attribute.as_tensor())
                if limited is not None:
                    node.attributes[name] = ir.AttrTensor(name, limited)
                    return True
            elif name == "value_float":
                content = np.array(attribute.as_float())
                if self._beyond(content).any():
                    node.attributes[name] = ir.AttrFloat32(name, float(self._moved(content)))
                    return True
        return False
