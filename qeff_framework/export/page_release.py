"""Gives pages of memory-mapped weights back to the kernel once they are written.

Transformers maps safetensors files into memory, so a loaded model is not resident until somebody reads it. Writing the ONNX file
reads every weight once; without this, a model of any size would be wholly resident at the end of its export.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Linux 5.4, not in Python's `mmap`: reclaim these pages. Their content stays valid and is read from the file again when needed,
#: unlike with MADV_DONTNEED, which loses what a private mapping has changed.
_MADV_PAGEOUT = 21


class MappedFiles:
    """The parts of this process's address space that are backed by files, as they were when the object was made."""

    def __init__(self) -> None:
        self._ranges = sorted(_file_ranges())

    def release(self, tensor: torch.Tensor) -> None:
        """Releases the pages that lie wholly inside `tensor`, if its memory is a mapped file; otherwise does nothing."""
        if not tensor.numel() or not tensor.is_contiguous():
            return
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        if not any(first <= start and end <= last for first, last in self._ranges):
            return  # Anonymous memory would go to the swap device.
        first_page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first_page
        if length > 0:
            _libc().madvise(ctypes.c_void_p(first_page), ctypes.c_size_t(length), ctypes.c_int(_MADV_PAGEOUT))


def _file_ranges() -> Iterator[tuple[int, int]]:
    """Address ranges of mapped files; none where ``/proc`` does not tell."""
    if sys.platform != "linux":
        return
    previous_end = 0
    start = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        # address range, permissions, offset, device, inode, path; the inode of anonymous memory is 0
        fields = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in fields[0].split("-"))
        if fields[4] == "0":
            continue
        if low != previous_end:  # One file may be mapped in adjoining pieces.
            if previous_end:
                yield start, previous_end
            start = low
        previous_end = high
    if previous_end:
        yield start, previous_end


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
