"""Small integers that are packed into 32-bit words."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def unpack_words(words: torch.Tensor, bits: int, count: int, *, order: Sequence[int] | None = None) -> torch.Tensor:
    """uint8 ``[rows, count]`` from int32 ``[rows, words]``: value i begins at bit ``i * bits`` of its row.

    `order` tells which value of each word stands at which place, where words hold whole values in another order.
    """
    if 8 % bits == 0:
        # Byte by byte: what exists meanwhile is no larger than the result.
        whole = words.contiguous().view(torch.uint8)
        parts = [(whole >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)] if bits < 8 else [whole]
        values = torch.stack(parts, dim=2).view(len(words), -1, 4, len(parts)).flatten(2)
        if order is not None:
            # Several times faster than a list as the index.
            values = values.index_select(2, torch.tensor([order.index(value) for value in range(len(order))]))
        return values.flatten(1)[:, :count]
    starts = torch.arange(count) * bits
    low, shift = starts // 32, starts % 32
    high = (low + 1).clamp(max=words.shape[1] - 1)
    wide = words.to(torch.int64) & 0xFFFFFFFF
    values = (wide[:, low] | (wide[:, high] << 32)) >> shift
    return (values & ((1 << bits) - 1)).to(torch.uint8)
