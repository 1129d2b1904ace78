"""``KVGatherCB`` over a whole cache becomes one Gather of its rows: the body would copy what it has gathered a second time."""

from __future__ import annotations

import onnx_ir as ir

from ort_sim_backend.lowering.graph import Writer, dialect_nodes, like, operand


class GatherRows:
    """Lowers each ``KVGatherCB`` that reads as many slots as the cache has; the others keep their body."""

    name = "GatherRows"
    version = "1"

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether a read was lowered."""
        lowered = False
        for read in dialect_nodes(subject, "KVGatherCB"):
            cache, batch_index, kv_positions = (operand(read, index) for index in range(3))
            if _dim(cache, 2) != _dim(kv_positions, 0):
                continue
            write, rows = Writer(read), like(read.outputs[0])
            index = write.op("Reshape", batch_index, write.vector(-1))
            write.ops("Gather", [cache, index], [rows], "", {"axis": 0})
            write.replace(read, [rows])
            lowered = True
        return lowered


def _dim(value: ir.Value, axis: int) -> object:
    """A size or the name of one; something that equals nothing where it is not known."""
    if value.shape is None or len(value.shape) <= axis:
        return object()
    size = value.shape[axis]
    return size if isinstance(size, int) else size.value or object()
