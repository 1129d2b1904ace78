"""The toolkit for lowering: what a backend needs to turn the portable graph into what its compiler takes.

Public, and part of the versioned surface of `qeff_framework.plugin_api`. It imports onnx_ir, so a backend imports it where it
lowers, not in its descriptor.

Vocabulary: `Op`, `Activation`, `Gate`, and typed views of dialect nodes (`AttentionNode`, ...). Writing passes: `DialectPass`
for nodes of one type, `GraphPass` for everything else, `GraphEditor` for new nodes. Passes that are ready: the rest.
"""

from __future__ import annotations

from qeff_framework.dialect.names import DOMAIN, ONNX_OPSET, Activation, Gate, Op
from qeff_framework.lowering.attention import FLOAT16_MIN, FLOAT32_MIN, AttentionOps, MaskPolicy, hides_nothing
from qeff_framework.lowering.blocked_attention import BlockedAttention
from qeff_framework.lowering.causal_mask import CausalMaskOps
from qeff_framework.lowering.compressed_products import CompressedProducts
from qeff_framework.lowering.computation import Computation
from qeff_framework.lowering.constant_products import ConstantProduct, constant_products
from qeff_framework.lowering.dequantized_experts import DequantizedExperts
from qeff_framework.lowering.dequantized_products import DequantizedProducts
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.experts import ExpertOps
from qeff_framework.lowering.float16_epsilons import Float16Epsilons
from qeff_framework.lowering.fold import FoldConstants
from qeff_framework.lowering.functions import attach_function
from qeff_framework.lowering.gather_rows import GatherRows
from qeff_framework.lowering.host_angles import ComputedInput, take_out_angles
from qeff_framework.lowering.inline import InlineDialect
from qeff_framework.lowering.layer_functions import InlineLayers, LayerFunctions
from qeff_framework.lowering.layer_windows import LayerWindow, layer_windows
from qeff_framework.lowering.limit_constants import LimitConstants, Limits
from qeff_framework.lowering.named_nodes import check_operator_types, nodes_named
from qeff_framework.lowering.nodes import (
    AttentionNode,
    CausalMaskNode,
    DialectNode,
    KVGatherNode,
    KVUpdateNode,
    MoENode,
    QuantizedMatMulNode,
    QuantizedMoENode,
    RMSNormNode,
    dialect_nodes,
)
from qeff_framework.lowering.one_hot_updates import OneHotUpdates
from qeff_framework.lowering.passes import DialectPass, GraphPass, PassResult
from qeff_framework.lowering.replicated_heads import ReplicateKVHeads, lowered_specs
from qeff_framework.lowering.rotary_tables import RotaryTables
from qeff_framework.lowering.scatter_updates import ScatterUpdates
from qeff_framework.lowering.specialize import BindSizes, PerGraph, bind_sizes, specialized_graphs
from qeff_framework.lowering.stored_weights import load_portable, matrices_of, turned_matrix
from qeff_framework.lowering.unroll_scan import UnrollScan
from qeff_framework.lowering.unused import RemoveUnused
from qeff_framework.lowering.values import (
    constant_array,
    graph_of,
    has_subgraph,
    is_weight,
    made_by,
    nodes_of,
    operand,
    readers,
    require_shape,
    same_dim,
    static_dim,
    static_shape,
    subgraphs,
)
from qeff_framework.lowering.weight_blocks import BlockFit, WeightBlocks
from qeff_framework.lowering.weight_files import (
    link_stored_weights,
    narrow_stored_weights,
    write_tensors,
    write_weights,
    writing_memory,
)
from qeff_framework.lowering.weights import computed_tensor, content_key, replace_content, weight_of, weights

__all__ = [
    "DOMAIN",
    "FLOAT16_MIN",
    "FLOAT32_MIN",
    "ONNX_OPSET",
    "Activation",
    "AttentionNode",
    "AttentionOps",
    "BindSizes",
    "BlockFit",
    "BlockedAttention",
    "CausalMaskNode",
    "CausalMaskOps",
    "CompressedProducts",
    "Computation",
    "ComputedInput",
    "ConstantProduct",
    "DequantizedExperts",
    "DequantizedProducts",
    "DialectNode",
    "DialectPass",
    "ExpertOps",
    "Float16Epsilons",
    "FoldConstants",
    "Gate",
    "GatherRows",
    "GraphEditor",
    "GraphPass",
    "InlineDialect",
    "InlineLayers",
    "KVGatherNode",
    "KVUpdateNode",
    "LayerFunctions",
    "LayerWindow",
    "LimitConstants",
    "Limits",
    "MaskPolicy",
    "MoENode",
    "OneHotUpdates",
    "Op",
    "PassResult",
    "PerGraph",
    "QuantizedMatMulNode",
    "QuantizedMoENode",
    "RMSNormNode",
    "RemoveUnused",
    "ReplicateKVHeads",
    "RotaryTables",
    "ScatterUpdates",
    "UnrollScan",
    "WeightBlocks",
    "add_initializer",
    "attach_function",
    "bind_sizes",
    "check_operator_types",
    "computed_tensor",
    "constant_array",
    "constant_products",
    "content_key",
    "dialect_nodes",
    "graph_of",
    "has_subgraph",
    "hides_nothing",
    "is_weight",
    "layer_windows",
    "link_stored_weights",
    "load_portable",
    "lowered_specs",
    "made_by",
    "matrices_of",
    "narrow_stored_weights",
    "nodes_named",
    "nodes_of",
    "operand",
    "readers",
    "replace_content",
    "require_shape",
    "same_dim",
    "specialized_graphs",
    "static_dim",
    "static_shape",
    "subgraphs",
    "take_out_angles",
    "turned_matrix",
    "weight_of",
    "weights",
    "write_tensors",
    "write_weights",
    "writing_memory",
]
