"""Which weights of a loaded module can stay in the blocks of its checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qeff_framework.contracts import PackedMatrix
from qeff_framework.seam.deferred import DeferredTensor, pieces
from qeff_framework.sources.quantized.weights import GroupedLevels, StoredWeight

#: Fewest and most numbers with one scale that kernels for such blocks take.
_SMALLEST, _LARGEST = 16, 128
#: Axes of a matrix, and of one for each expert.
_MATRIX, _EXPERTS = 2, 3
#: Most bytes of experts' weights that are compared at once.
_CHUNK_BYTES = 2**28

_Array = NDArray[Any]
_DIGEST = np.dtype("V16")


@dataclass(frozen=True)
class _Form:
    """What a matrix is packed in."""

    bits: int
    block_size: int


@dataclass(frozen=True)
class _Rows:
    """Where rows lie: the number of the packed weight, and the row in that."""

    weights: NDArray[np.int32]
    rows: NDArray[np.int32]


def packed_matrices(weights: Iterable[StoredWeight], module: torch.nn.Module) -> dict[str, PackedMatrix]:
    """The parameters of `module` that are, number by number, what packed weights stand for; by their names in the module.

    They are found by the numbers of their rows: the loader may have renamed them, put rows in another order, and joined the
    weights of several products and experts; a weight that was changed since (merged with an adapter, say) is no longer what
    lies in the file.
    """
    known = _PackedRows(weights)
    found: dict[str, PackedMatrix] = {}
    if not known:
        return found
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.dim() not in (_MATRIX, _EXPERTS):
            continue
        is_read = isinstance(parameter, DeferredTensor) and parameter.dim() == _MATRIX
        tensor = parameter.materialise() if is_read else parameter  # type: ignore[attr-defined]
        for transposed in (False, True):
            places = known.places(_row_digests(tensor, transposed=transposed))
            if places is not None:
                rows, columns = parameter.shape[-2:]
                shape = (*parameter.shape[:-2], *((columns, rows) if transposed else (rows, columns)))
                found[name] = known.matrix(shape, places)
                break
    return found


class _PackedRows:
    """The rows of all packed weights by the digests of their numbers."""

    def __init__(self, weights: Iterable[StoredWeight]) -> None:
        self._reads: list[Callable[[], GroupedLevels]] = []
        self._forms: list[_Form] = []
        digests: list[_Array] = []
        for weight in weights:
            levels = None if weight.levels is None else weight.levels()
            form = None if levels is None else _form_of(levels)
            if weight.levels is None or levels is None or form is None:
                continue
            self._reads.append(weight.levels)
            self._forms.append(form)
            digests.append(_digests(levels.dequantised()))
        counts = [len(part) for part in digests]
        joined = np.concatenate(digests) if digests else np.empty(0, _DIGEST)
        order = np.argsort(joined, kind="stable")
        self._digests = joined[order]
        owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        numbers = [np.arange(count, dtype=np.int32) for count in counts]
        self._owners = owners[order]
        self._rows = (np.concatenate(numbers) if numbers else np.empty(0, np.int32))[order]

    def __bool__(self) -> bool:
        return bool(self._reads)

    def places(self, digests: Iterator[_Array]) -> _Rows | None:
        """Where rows with these digests lie, all of them in one form; `None` where that is not so."""
        owners, rows = [], []
        for part in digests:
            first = np.searchsorted(self._digests, part, side="left")
            last = np.searchsorted(self._digests, part, side="right")
            if not (first < last).all():
                return None
            owner, row = self._owners[first], self._rows[first]
            # Equal rows of several weights, such as zeros: taken from the weight that the other rows are from.
            for place in np.nonzero(last - first > 1)[0]:
                candidates = self._owners[first[place] : last[place]]
                near = np.nonzero(np.isin(candidates, owner[last - first == 1]))[0]
                if near.size:
                    owner[place] = candidates[near[0]]
                    row[place] = self._rows[first[place] + near[0]]
            owners.append(owner)
            rows.append(row)
        found = _Rows(np.concatenate(owners), np.concatenate(rows))
        return found if len({self._forms[owner] for owner in np.unique(found.weights)}) == 1 else None

    def matrix(self, shape: tuple[int, ...], places: _Rows) -> PackedMatrix:
        """The matrix, or the experts' matrices, whose rows lie there."""
        form = self._forms[places.weights[0]]
        return PackedMatrix(
            shape=shape,
            bits=form.bits,
            block_size=form.block_size,
            read=partial(_joined, self._reads, places, shape, form),
        )


def _row_digests(tensor: torch.Tensor, *, transposed: bool) -> Iterator[_Array]:
    """Digests of the rows of each matrix, some experts at a time; the first row comes alone, since it rules most out."""
    parts = pieces(tensor, _CHUNK_BYTES) if isinstance(tensor, DeferredTensor) else iter((tensor,))
    for part in parts:
        for stored in part.reshape(-1, *part.shape[-2:]):
            matrix = stored.mT if transposed else stored
            yield _digests(matrix[:1])
            yield _digests(matrix[1:])


def _digests(matrix: torch.Tensor) -> _Array:
    # Zero has two signs in some formats, and one as a level.
    rows: _Array = (matrix.detach().float() + 0.0).contiguous().numpy(force=True)
    return np.frombuffer(b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows), _DIGEST)


def _form_of(levels: GroupedLevels) -> _Form | None:
    """What the matrix is kept in: blocks of a power of two in each of its own; `None` where it cannot be kept."""
    if levels.groups is not None:
        return None
    size = _SMALLEST * 2
    if levels.scales.shape[1] > 1:
        size = min(levels.block_size & -levels.block_size, _LARGEST)
    return _Form(4 if levels.bits <= 4 else 8, size) if size >= _SMALLEST else None


def _joined(
    reads: Sequence[Callable[[], GroupedLevels]], places: _Rows, shape: tuple[int, ...], form: _Form
) -> tuple[_Array, _Array, _Array]:
    """Levels, scales and zero points as `PackedMatrix.read` returns them; one weight of the file at a time is unpacked."""
    blocks = -(-shape[-1] // form.block_size)
    count = len(places.rows)
    levels = np.empty((count, blocks, form.block_size * form.bits // 8), np.uint8)
    scales, zero_points = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.uint8)
    for owner in np.unique(places.weights):
        chosen = np.nonzero(places.weights == owner)[0]
        rows = places.rows[chosen]
        parts = _parts(reads[owner](), form)
        levels[chosen], scales[chosen], zero_points[chosen] = (part[rows] for part in parts)
    leading = shape[:-1]
    return (
        levels.reshape(*leading, *levels.shape[1:]),
        scales.reshape(*leading, blocks),
        zero_points.reshape(*leading, blocks),
    )


def _parts(levels: GroupedLevels, form: _Form) -> tuple[_Array, _Array, _Array]:
    """Levels, scales and zero points of one weight in blocks of the form."""
    size = form.block_size
    outputs, inputs = levels.levels.shape
    blocks = -(-inputs // size)
    padded = np.zeros((outputs, blocks * size), dtype=np.uint8)
    padded[:, :inputs] = levels.levels.numpy()
    numbers = padded.reshape(outputs, blocks, size)
    packed = numbers if form.bits > 4 else numbers[..., 0::2] | numbers[..., 1::2] << 4
    groups = np.minimum(np.arange(blocks) * size // levels.block_size, levels.scales.shape[1] - 1)
    return packed, levels.scales.numpy()[:, groups], levels.zero_points.numpy()[:, groups]
