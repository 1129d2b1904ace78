"""A permutation of more axes than the NPU has becomes one of fewer axes.

Axes of size 1 are left out, and axes that stay neighbours are one. So video transformers put the patches of a clip together:
``[1, F, H, W, 1, 2, 2, C]`` becomes ``[1, C, F, 1, H, 2, W, 2]``, which is a permutation of five axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, RemoveUnused, made_by, nodes_of, operand, static_shape

#: Axes of a tensor that the compiler takes.
MOST_AXES = 5


class MergedAxes(GraphPass):
    """Rewrites each ``Reshape``, ``Transpose``, ``Reshape`` whose middle has too many axes, where fewer do."""

    name = "MergedAxes"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a permutation was rewritten. What needs more axes even so stays, and the compiler names it."""
        changed = False
        for node in [*nodes_of(model, "Transpose")]:
            shape, order = static_shape(operand(node, 0)), node.attributes.get_ints("perm")
            readers = node.outputs[0].consumers()
            split = made_by(operand(node, 0), "Reshape")
            if shape is None or order is None or len(shape) <= MOST_AXES or split is None:
                continue
            joined = [static_shape(reader.outputs[0]) for reader in readers if reader.op_type == "Reshape"]
            sizes, fewer = merged(shape, order)
            if (
                len(sizes) > MOST_AXES
                or len(joined) != len(readers)
                or None in joined
                or node.outputs[0].is_graph_output()
            ):
                continue
            edit = GraphEditor(model, node)
            turned = edit.op("Transpose", edit.reshape(operand(split, 0), sizes), perm=fewer)
            for reader, result in zip(readers, joined, strict=True):
                after = GraphEditor(model, reader)
                after.replace(reader, after.reshape(turned, result or ()))
            changed = True
        if changed:
            RemoveUnused()(model)
        return changed


def merged(shape: Sequence[int], order: Sequence[int]) -> tuple[list[int], list[int]]:
    """The sizes of the fewest axes, and the order of these, that mean the same permutation."""
    kept = [axis for axis in order if shape[axis] != 1]
    places = {axis: place for place, axis in enumerate(axis for axis in range(len(shape)) if shape[axis] != 1)}
    runs: list[list[int]] = []
    for axis in kept:
        if runs and places[axis] == places[runs[-1][-1]] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    starts = sorted(runs, key=lambda run: run[0])
    return [math.prod(shape[axis] for axis in run) for run in starts], [starts.index(run) for run in runs]
