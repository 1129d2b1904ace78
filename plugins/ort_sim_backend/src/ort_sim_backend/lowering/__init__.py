"""Lowering: dialect ops of the portable graph become what ONNX Runtime's CPU kernels do best.

Each pass finds its nodes by op name and leaves the ones that it cannot carry to the next pass, and at last to the op's body in
standard ops, which ONNX Runtime inlines.
"""

from __future__ import annotations

from ort_sim_backend.lowering.compressed_products import compressed_products
from ort_sim_backend.lowering.compressed_tables import CompressedTables
from ort_sim_backend.lowering.encoder_branch import EncoderBranch
from ort_sim_backend.lowering.experts import FusedExperts
from ort_sim_backend.lowering.fast_gelu import FastGelu
from ort_sim_backend.lowering.flat_norms import FlatNorms
from ort_sim_backend.lowering.group_query_attention import GroupQueryAttention
from ort_sim_backend.lowering.interleaved_rotary import InterleavedRotary
from ort_sim_backend.lowering.kept_experts import KeptExperts
from ort_sim_backend.lowering.kept_products import KeptProducts
from ort_sim_backend.lowering.last_product import LastProduct
from ort_sim_backend.lowering.last_tokens import LastTokens
from ort_sim_backend.lowering.lazy_values import LazyValues
from ort_sim_backend.lowering.merged_reshapes import MergedReshapes
from ort_sim_backend.lowering.multi_head_attention import MultiHeadAttention
from ort_sim_backend.lowering.rms_norm import SimplifiedRMSNorm
from ort_sim_backend.lowering.rotary_embedding import RotaryEmbedding
from ort_sim_backend.lowering.split_products import SplitProducts
from ort_sim_backend.lowering.step_rows import StepRows
from ort_sim_backend.lowering.tied_weights import TiedWeights
from ort_sim_backend.lowering.used_slots import UsedSlots
from ort_sim_backend.lowering.winograd_convolutions import WinogradConvolutions
from ort_sim_backend.options import BLOCK_SIZE, COMPRESSED_BITS
from qeff_framework.lowering import DequantizedExperts, GatherRows, RemoveUnused, ScatterUpdates, WeightBlocks
from qeff_framework.plugin_api import Transform

_EIGHT_BITS = WeightBlocks(bits=8, size=BLOCK_SIZE)


def passes(precision: str = "fp32", *, one_row: bool = False, ctx_len: int | None = None) -> tuple[Transform, ...]:
    """The passes, in the order in which they must run.

    Args:
        precision: the value of the option.
        one_row: all steps of the program have a single row.
        ctx_len: slots of the caches, where no step takes tokens back: caches of windows may then be shorter.
    """
    bits = COMPRESSED_BITS.get(precision)
    experts = None if bits is None else WeightBlocks(bits=bits, size=BLOCK_SIZE)
    compressed: tuple[Transform, ...] = ()
    if bits is not None:
        products = compressed_products(_EIGHT_BITS)
        compressed = (*products, CompressedTables(products[0], _EIGHT_BITS))
    return (
        SplitProducts(),
        WinogradConvolutions(),
        FastGelu(),
        # In front of the attention, which takes rotated states in the kernel's order of axes.
        RotaryEmbedding(),
        InterleavedRotary(),
        StepRows(),
        GroupQueryAttention(ctx_len=ctx_len),
        MultiHeadAttention(),
        UsedSlots(),
        GatherRows(),
        SimplifiedRMSNorm(),
        FlatNorms(),
        KeptProducts(int8_activations=experts is not None),
        # It finds the products that choose experts by the mixtures, so these must be there yet.
        *compressed,
        KeptExperts(int8_activations=experts is not None),
        # Blocks that the kernel does not take.
        DequantizedExperts(),
        FusedExperts(experts),
        *((LastProduct(),) if one_row else ()),
        TiedWeights(),
        EncoderBranch(),
        # The caches that no GroupQueryAttention took: of models with other attention, where several layers read one cache, or
        # where a step has other rows than the cache (the kernel takes one cache row for each row of the step).
        ScatterUpdates(),
        MergedReshapes(),
        LazyValues(),
        RemoveUnused(),
    )


def final_passes() -> tuple[Transform, ...]:
    """The passes behind what the compile stage measures."""
    return (LastTokens(), RemoveUnused())


__all__ = [
    "CompressedTables",
    "EncoderBranch",
    "FastGelu",
    "FlatNorms",
    "FusedExperts",
    "GroupQueryAttention",
    "InterleavedRotary",
    "KeptExperts",
    "KeptProducts",
    "LastProduct",
    "LastTokens",
    "LazyValues",
    "MergedReshapes",
    "MultiHeadAttention",
    "RotaryEmbedding",
    "SimplifiedRMSNorm",
    "SplitProducts",
    "StepRows",
    "TiedWeights",
    "UsedSlots",
    "WinogradConvolutions",
    "compressed_products",
    "final_passes",
    "passes",
]
