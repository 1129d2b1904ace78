"""Which weights of a loaded module can stay in the blocks of its checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qeff_framework.contracts import PackedMatrix
from qeff_framework.seam.deferred import DeferredTensor
from qeff_framework.sources.quantized.weights import GroupedLevels, StoredWeight

#: Fewest and most numbers with one scale that kernels for such blocks take.
_SMALLEST, _LARGEST = 16, 128


def packed_matrices(weights: Iterable[StoredWeight], module: torch.nn.Module) -> dict[str, PackedMatrix]:
    """The parameters of `module` that are, number by number, what a packed weight stands for; by their names in the module.

    They are found by their numbers: the loader may have renamed them and put rows in another order, and a weight that was changed
    since (merged with an adapter, say) is no longer what lies in the file.
    """
    known = {}
    for weight in weights:
        if weight.levels is None:
            continue
        levels = weight.levels()
        if _block_size(levels) is not None:
            rows = _row_digests(levels.dequantised())
            known[frozenset(rows)] = weight.levels, rows
    found: dict[str, PackedMatrix] = {}
    if not known:
        return found
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.dim() != 2:
            continue
        matrix = parameter.materialise() if isinstance(parameter, DeferredTensor) else parameter
        for transposed in (False, True):
            rows = _row_digests(matrix.T if transposed else matrix)
            source = known.get(frozenset(rows))
            if source is None or len(source[1]) != len(rows):
                continue
            read, stored = source
            place = {row: number for number, row in enumerate(stored)}
            order = [place[row] for row in rows]
            found[name] = _matrix(read(), partial(_parts, read, None if order == sorted(order) else order))
            break
    return found


def _row_digests(matrix: torch.Tensor) -> list[bytes]:
    rows: NDArray[Any] = matrix.detach().contiguous().numpy(force=True)
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def _block_size(levels: GroupedLevels) -> int | None:
    """The size of the blocks that the matrix is kept in: a power of two in each of its own; `None` where it cannot be kept."""
    if levels.groups is not None:
        return None
    if levels.scales.shape[1] == 1:
        return _SMALLEST * 2
    size = min(levels.block_size & -levels.block_size, _LARGEST)
    return size if size >= _SMALLEST else None


def _matrix(levels: GroupedLevels, read: Any) -> PackedMatrix:
    outputs, inputs = levels.levels.shape
    return PackedMatrix(
        shape=(outputs, inputs),
        bits=4 if levels.bits <= 4 else 8,
        block_size=_block_size(levels) or _SMALLEST,
        read=read,
    )


def _parts(read: Any, order: list[int] | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Levels, scales and zero points as `PackedMatrix.read` returns them; `order`: which row of the file each row is."""
    levels: GroupedLevels = read()
    size = _block_size(levels) or _SMALLEST
    outputs, inputs = levels.levels.shape
    blocks = -(-inputs // size)
    padded = np.zeros((outputs, blocks * size), dtype=np.uint8)
    padded[:, :inputs] = levels.levels.numpy()
    numbers = padded.reshape(outputs, blocks, size)
    packed = numbers if levels.bits > 4 else numbers[..., 0::2] | numbers[..., 1::2] << 4
    groups = np.minimum(np.arange(blocks) * size // levels.block_size, levels.scales.shape[1] - 1)
    arrays = (packed, levels.scales.numpy()[:, groups], levels.zero_points.numpy()[:, groups])
    if order is not None:
        arrays = (arrays[0][order], arrays[1][order], arrays[2][order])
    return arrays
