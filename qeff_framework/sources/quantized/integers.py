"""Small integers that are packed into 32-bit words."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def unpack_words(words: torch.Tensor, bits: int, count: int, *, order: Sequence[int] | None = None) -> torch.Tensor:
    """uint8 ``[rows, count]`` from int32 ``[rows, words]``: value i begins at bit ``i * bits`` of its row.

    `order` tells which value of each word stands at which place, where words hold whole values in another order.
    """
    if order is not None:
        inverse = [order.index(value) for value in range(len(order))]
        shifts = torch.tensor(inverse, dtype=torch.int32) * bits
        values = (words.unsqueeze(2) >> shifts) & ((1 << bits) - 1)
        return values.flatten(1)[:, :count].to(torch.uint8)
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        values = (words.unsqueeze(2) >> shifts) & ((1 << bits) - 1)
        return values.flatten(1)[:, :count].to(torch.uint8)
    starts = torch.arange(count) * bits
    low, shift = starts // 32, starts % 32
    high = (low + 1).clamp(max=words.shape[1] - 1)
    wide = words.to(torch.int64) & 0xFFFFFFFF
    values = (wide[:, low] | (wide[:, high] << 32)) >> shift
    return (values & ((1 << bits) - 1)).to(torch.uint8)
