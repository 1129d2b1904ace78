"""A table that is looked up by row keeps its rows in blocks of few bits, those of the output layer if that has the same weight.

Otherwise the largest weight of a small model would stay as it was: 671 MB of the 972 MB that Gemma 3 270M took with 8 bits.
Only the rows that a step names are turned into numbers.
"""

from __future__ import annotations

import onnx_ir as ir

from ort_sim_backend.lowering.block_tables import rows_of_table
from qeff_framework.lowering import (
    CompressedProducts,
    GraphEditor,
    GraphPass,
    WeightBlocks,
    is_weight,
    operand,
    weight_of,
)

#: Smaller tables, such as those of positions or token types, are left: they take no memory to speak of.
_SMALLEST = 1 << 20


class CompressedTables(GraphPass):
    """Lowers each ``Gather`` of rows from a float32 table. Runs behind `products`, whose weights it shares."""

    name = "CompressedTables"
    version = "1"

    def __init__(self, products: CompressedProducts, blocks: WeightBlocks) -> None:
        self._products = products
        self._blocks = blocks

    def run(self, model: ir.Model) -> bool:
        """Says whether a table was compressed."""
        lookups = [node for node in model.graph.all_nodes() if _is_large_lookup(node, self._blocks)]
        for node in lookups:
            edit = GraphEditor(model, node)
            table, rows = operand(node, 0), operand(node, 1)
            levels, scales = self._products.compressed(model, table, self._blocks, transposed=True)
            length = int(weight_of(table).shape.numpy()[1])
            edit.replace(node, rows_of_table(edit, levels, scales, rows, bits=self._blocks.bits, length=length))
        return bool(lookups)


def _is_large_lookup(node: ir.Node, blocks: WeightBlocks) -> bool:
    if node.domain or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    table = operand(node, 0)
    if not is_weight(table) or table.dtype != ir.DataType.FLOAT:
        return False
    tensor = weight_of(table)
    sizes = [int(size) for size in tensor.shape.numpy()]
    return len(sizes) == 2 and tensor.size >= _SMALLEST and sizes[1] % blocks.size == 0
