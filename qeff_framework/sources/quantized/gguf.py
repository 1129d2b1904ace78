"""GGUF: the matrices whose blocks have one scale and no offset, so that they can be kept. Transformers loads the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qeff_framework.sources.gguf_header import GGUFHeader
from qeff_framework.sources.quantized.weights import GroupedLevels, GroupLayout, StoredWeight

_BLOCK = 32


@dataclass(frozen=True)
class _Kind:
    """A type of blocks with a float16 scale in front."""

    bits: int
    #: The level that stands for 0.
    zero_point: int
    #: Bytes of a block.
    width: int


#: By the number of the type: Q4_0, Q5_0 and Q8_0.
_KINDS = {2: _Kind(4, 8, 18), 6: _Kind(5, 16, 22), 8: _Kind(8, 128, 34)}


def weights(path: Path) -> Iterator[StoredWeight]:
    """The matrices in such blocks, by their names in the file."""
    content: NDArray[np.uint8] = np.memmap(path, mode="r", dtype=np.uint8)
    for name, place in GGUFHeader.of(path).tensors.items():
        kind = _KINDS.get(place.kind)
        if kind is None or len(place.shape) not in (2, 3):
            continue
        # The matrices of experts lie one behind the other.
        rows, columns = math.prod(place.shape[:-1]), place.shape[-1]
        size = rows * (columns // _BLOCK) * kind.width
        data = content[place.offset : place.offset + size].reshape(rows, columns // _BLOCK, kind.width)
        levels = partial(_levels, data, kind)
        yield StoredWeight(
            name=name,
            sources=(),
            needed=(),
            read=lambda levels=levels: levels().dequantised(),  # type: ignore[misc]
            levels=levels,
            layout=partial(GroupLayout, bits=kind.bits, block_size=_BLOCK, count=columns // _BLOCK),
            shape=place.shape,
        )


def _levels(data: NDArray[np.uint8], kind: _Kind) -> GroupedLevels:
    rows, blocks, _ = data.shape
    scales = np.ascontiguousarray(data[..., :2]).view("<f2")[..., 0].astype(np.float32)
    numbers = data[..., 2:]
    if kind.bits == 8:
        levels = numbers ^ 128
    else:
        halves = numbers[..., kind.width - 2 - _BLOCK // 2 :]
        # The lower halves of the bytes are the first 16 levels of a block.
        levels = np.concatenate([halves & 15, halves >> 4], axis=-1)
        if kind.bits == 5:
            fifth = np.unpackbits(np.ascontiguousarray(numbers[..., :4]), axis=-1, bitorder="little")
            levels = levels | fifth << 4
    return GroupedLevels(
        levels=torch.from_numpy(np.ascontiguousarray(levels.reshape(rows, blocks * _BLOCK))),
        scales=torch.from_numpy(scales),
        zero_points=torch.full((rows, blocks), kind.zero_point, dtype=torch.uint8),
        bits=kind.bits,
        block_size=_BLOCK,
    )
