"""Tables of which a step reads some rows: few of their pages stay in memory.

ONNX Runtime would map them, and the pages that were read once would stay: the system maps whole runs of pages around each row, so
some hundred tokens bring in all of a table, 164 MiB with Gemma 3 270M. Rows whose numbers the session knows are read from the
file. Where a step finds out in the middle which rows it wants, the table is in a mapping of our own, which is emptied; what is
read again then comes from the system's cache of the file, which processes share.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeff_framework.plugin_api import ExecutionError, InputError

#: Smallest steps between two emptyings. After each, a step maps its pages again, which takes about as much as a tenth of a step.
_STEPS = 8


def _seek_and_read(file: int, length: int, offset: int) -> bytes:
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, length)


#: Windows lacks the call that does both.
_read_at: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)


class RowReader:
    """Reads rows of a table from its file.

    Args:
        file: holds it.
        place: its ``offset``, ``dtype`` and ``shape``; ``rows`` is the name of the graph's input that takes the rows, and
            ``numbers`` that of the input or result of the step which says which ones.
    """

    def __init__(self, file: Path, place: Mapping[str, Any]) -> None:
        self._file = file.open("rb", buffering=0)
        # A session that is dropped without being released leaves no open file.
        weakref.finalize(self, self._file.close)
        self.rows, self.numbers = str(place["rows"]), str(place["numbers"])
        self._offset, self._count, *self._sizes = int(place["offset"]), *map(int, place["shape"])
        self._dtype = np.dtype(place["dtype"])

    def buffer(self, numbers: NDArray[Any]) -> NDArray[np.generic]:
        """Room for the rows that an array like `numbers` names."""
        return np.zeros((*numbers.shape, *self._sizes), self._dtype)

    def read(self, numbers: NDArray[Any], target: NDArray[np.generic]) -> None:
        """Writes the rows `numbers` into `target`.

        Raises:
            InputError: the table has no such row.
            ExecutionError: the file has become shorter.
        """
        found = numbers.reshape(-1)
        lowest, highest = int(found.min(initial=0)), int(found.max(initial=0))
        if lowest < -self._count or highest >= self._count:
            wrong = lowest if lowest < -self._count else highest
            raise InputError(
                f"{self.numbers} has {wrong}, and there are {self._count} rows to choose from: give 0 to {self._count - 1}"
            )
        length = target.nbytes // max(len(found), 1)
        file = self._file.fileno()
        places = found.astype(np.int64) % self._count * length + self._offset
        pieces = [_read_at(file, length, place) for place in places.tolist()]
        content = b"".join(pieces)
        if len(content) != target.nbytes:
            row = next(number for number, piece in zip(found, pieces, strict=True) if len(piece) != length)
            raise ExecutionError(
                f"{self._file.name} has become shorter since it was opened: row {row} of a table is missing. Compile the "
                "model again"
            )
        target.reshape(-1).view(np.uint8)[...] = np.frombuffer(content, np.uint8)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class MappedTables:
    """The tables of a program.

    Args:
        file: holds them.
        places: by table its ``name``, ``offset``, ``dtype`` and ``shape``.
        rows: how many rows the smallest step reads.
    """

    def __init__(self, file: Path, places: Sequence[Mapping[str, Any]], rows: int) -> None:
        with file.open("rb") as opened:
            self._mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        #: By the name of the graph's input; they cannot be written.
        self.arrays: dict[str, NDArray[np.generic]] = {
            place["name"]: np.ndarray(place["shape"], place["dtype"], self._mapping, place["offset"])
            for place in places
        }
        self._smallest = rows
        self._read = 0

    @contextmanager
    def reading(self, rows: int) -> Iterator[None]:
        """The body is a step that reads so many rows."""
        # A large step takes long beside the emptying, and brings in far more pages than are shared with other steps.
        is_large = rows > 2 * self._smallest
        if is_large:
            self._empty()
        yield
        self._read += rows
        if is_large or self._read >= _STEPS * self._smallest:
            self._empty()

    def _empty(self) -> None:
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._mapping.madvise(mmap.MADV_DONTNEED)
