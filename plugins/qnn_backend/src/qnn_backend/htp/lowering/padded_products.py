"""``Pad`` in front of ``MatMul`` becomes a concatenation.

Where what is padded comes from a transpose, the compiler gets the product wrong, by the whole size of the result: the linear
attention of Sana adds a row of ones to its values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering import GraphEditor, GraphPass, constant_array, nodes_of, operand, readers, static_shape


class PaddedProducts(GraphPass):
    """Rewrites each ``Pad`` with a constant number of a tensor with a static shape that a ``MatMul`` reads."""

    name = "PaddedProducts"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a node was rewritten."""
        changed = False
        for node in nodes_of(model, "Pad"):
            if not any(reader.op_type == "MatMul" for reader in readers(node.outputs[0])):
                continue
            slabs = _slabs(node)
            if slabs is not None:
                edit, value = GraphEditor(model, node), operand(node, 0)
                for axis, before, after in slabs:
                    parts = [edit.array(before)] * bool(before.size) + [value] + [edit.array(after)] * bool(after.size)
                    value = edit.op("Concat", *parts, axis=axis)
                edit.replace(node, value)
                changed = True
        return changed


def _slabs(node: ir.Node) -> list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] | None:
    """For each axis that is padded what stands in front of it and behind it; `None` for a pad of another kind."""
    value, fill = operand(node, 0), node.inputs[2] if len(node.inputs) > 2 else None
    shape, pads = static_shape(value), constant_array(node.inputs[1])
    number = np.zeros(()) if fill is None else constant_array(fill)
    is_plain = node.attributes.get_string("mode", "constant") == "constant" and len(node.inputs) < 4
    if shape is None or pads is None or number is None or value.dtype != ir.DataType.FLOAT or not is_plain:
        return None
    if pads.min(initial=0) < 0 or not pads.any():
        return None
    return list(_filled(list(shape), pads.reshape(2, -1), float(number.item())))


def _filled(
    shape: list[int], pads: NDArray[np.int64], number: float
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    for axis, (before, after) in enumerate(pads.T.tolist()):
        if before or after:
            sizes = [
                [count if place == axis else size for place, size in enumerate(shape)] for count in (before, after)
            ]
            front, back = (np.full(size, number, dtype=np.float32) for size in sizes)
            yield axis, front, back
            shape[axis] += before + after
