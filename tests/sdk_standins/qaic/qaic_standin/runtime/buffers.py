"""Buffers and their dims (rows R2 and R7)."""

from __future__ import annotations

from collections.abc import Iterator

from .strict_types import require, require_ints

Dims = tuple[int, list[int]]


class QBuffer:
    """An immutable block of bytes. Zero length means that the binding is skipped."""

    def __init__(self, data: bytes) -> None:
        self._data = require(data, bytes, "QBuffer")

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


class BufferDimensionsVecRef:
    """Element size and dims of each buffer: `[(element_size, [dims]), ...]`, index = binding index."""

    def __init__(self, items: list[tuple[int, list[int]]]) -> None:
        self._items = [_dims(item) for item in require(items, list, "BufferDimensionsVecRef")]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Dims]:
        return iter([(size, list(dims)) for size, dims in self._items])

    def __getitem__(self, index: int) -> Dims:
        size, dims = self._items[index]
        return size, list(dims)

    def __setitem__(self, index: int, item: tuple[int, list[int]]) -> None:
        self._items[index] = _dims(item)


class QIDList:
    """A list of device ids."""

    def __init__(self, qids: list[int] | None = None) -> None:
        self._qids = [] if qids is None else [require(q, int, "QIDList") for q in require(qids, list, "QIDList")]

    def __len__(self) -> int:
        return len(self._qids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._qids)

    def __getitem__(self, index: int) -> int:
        return self._qids[index]


def _dims(item: object) -> Dims:
    pair = require(item, tuple, "BufferDimensionsVecRef item")
    if len(pair) != 2:
        raise TypeError("BufferDimensionsVecRef item: expected (element size, dims)")
    return require(pair[0], int, "element size"), require_ints(pair[1], "dims")
