"""Weights of matrix products are stored in blocks of 4 or 8 bits, ``com.microsoft::MatMulNBits``; everything else stays in
float16.

Each column of a weight ``[K, N]`` is cut into blocks of 32, or of 16 where K asks for it, with one scale each. A weight that
neither divides stays as it is: the compiler wants whole blocks, and inputs of rank 3. Other forms of 4-bit weights (per
channel, or as a standalone dequantisation) are refused by the compiler.
"""

from __future__ import annotations

from qeff_framework.lowering import CompressedProducts, WeightBlocks

_BLOCK_SIZES = (32, 16)


def compressed_products(bits: int) -> CompressedProducts:
    """The pass. One instance serves all graphs of a model."""

    def blocks_for(length: int) -> WeightBlocks | None:
        size = next((size for size in _BLOCK_SIZES if length % size == 0), None)
        return None if size is None else WeightBlocks(bits=bits, size=size)

    return CompressedProducts(blocks_for, ranked=True)
