"""Tables of which a step reads some rows are mapped from their file, and few of their pages stay in memory.

ONNX Runtime would map them as well, and the pages that were read once would stay: the system maps 16 pages around each row, so
some hundred tokens bring in all of a table, 164 MiB with Gemma 3 270M. A mapping of our own can be emptied; what is read again
then comes from the system's cache of the file, which processes share.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Smallest steps between two emptyings. After each, a step maps its pages again, which takes about as much as a tenth of a step.
_STEPS = 8


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
        # A chunk of a prompt takes long beside the emptying, and brings in far more pages than are shared with other steps.
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
