"""GGUF: the matrices whose blocks have one scale and no offset, so that they can be kept. Transformers loads the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qeff_framework.sources.quantized.weights import GroupedLevels, StoredWeight

_BLOCK = 32
_ALIGNMENT = "general.alignment"
#: Bytes of a value by the type's number; 8 is a string, 9 an array.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4


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
    reader = _Reader(content)
    start, tensors = reader.tensors()
    for name, shape, kind_number, offset in tensors:
        kind = _KINDS.get(kind_number)
        if kind is None or len(shape) != 2:
            continue
        rows, columns = shape
        size = rows * (columns // _BLOCK) * kind.width
        data = content[start + offset : start + offset + size].reshape(rows, columns // _BLOCK, kind.width)
        levels = partial(_levels, data, kind)
        yield StoredWeight(name=name, sources=(), read=lambda levels=levels: levels().dequantised(), levels=levels)  # type: ignore[misc]


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


class _Reader:
    """Goes through the header of a file; its texts are passed over, of which a vocabulary has hundreds of thousands."""

    def __init__(self, content: NDArray[np.uint8]) -> None:
        self._content = memoryview(content)  # type: ignore[arg-type]
        self._place = 0

    def tensors(self) -> tuple[int, list[tuple[str, tuple[int, ...], int, int]]]:
        """Where the data begin; and name, shape, number of the type, and offset in the data of each tensor."""
        self._place = 8
        tensor_count, value_count = self._take("<QQ")
        alignment = 32
        for _ in range(value_count):
            key = self._text()
            (kind,) = self._take("<I")
            value = self._value(kind)
            alignment = value if key == _ALIGNMENT and value is not None else alignment
        found = []
        for _ in range(tensor_count):
            name = self._text()
            (rank,) = self._take("<I")
            sizes = self._take(f"<{rank}Q")
            kind, offset = self._take("<IQ")
            found.append((name, tuple(reversed(sizes)), kind, offset))
        return -(-self._place // alignment) * alignment, found

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._content, self._place)
        self._place += struct.calcsize(form)
        return values

    def _text(self) -> str:
        (length,) = self._take("<Q")
        self._place += length
        return bytes(self._content[self._place - length : self._place]).decode("utf-8", "replace")

    def _value(self, kind: int) -> int | None:
        """An unsigned 32-bit number; every other value is passed over."""
        if kind == _UINT32:
            (number,) = self._take("<I")
            return int(number)
        if kind == _STRING:
            self._skip_texts(1)
        elif kind == _ARRAY:
            inner, count = self._take("<IQ")
            if inner == _STRING:
                self._skip_texts(count)
            else:
                self._place += count * _VALUE_BYTES[inner]
        else:
            self._place += _VALUE_BYTES[kind]
        return None

    def _skip_texts(self, count: int) -> None:
        for _ in range(count):
            (length,) = self._take("<Q")
            self._place += length
