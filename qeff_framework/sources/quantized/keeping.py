"""Which weights of a loaded module can stay in the blocks of its checkpoint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from qeff_framework.contracts import PackedMatrix
from qeff_framework.seam.deferred import (
    Applied,
    ComputedTensor,
    DeferredTensor,
    Recipe,
    StoredTensor,
    beginnings,
    pieces,
)
from qeff_framework.sources.quantized.weights import GroupedLevels, GroupLayout, StoredWeight

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

    The loader may have renamed them, put rows in another order, and joined the weights of several products and experts. Of a
    deferred parameter that is told by what was done with it, and nothing is read. Any other one is found by the numbers of its
    rows: a weight that was changed since (merged with an adapter, say) is no longer what lies in the file.
    """
    known = _PackedWeights([weight for weight in weights if weight.levels is not None])
    found: dict[str, PackedMatrix] = {}
    if not known:
        return found
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.dim() not in (_MATRIX, _EXPERTS):
            continue
        placed = known.placed(parameter.recipe) if isinstance(parameter, DeferredTensor) else _NOT_TOLD
        if placed is _NOT_TOLD:
            placed = known.found_by_numbers(parameter)
        if isinstance(placed, _Placed):
            rows, columns = parameter.shape[-2:]
            shape = (*parameter.shape[:-2], *((columns, rows) if placed.is_transposed else (rows, columns)))
            found[name] = known.matrix(shape, placed.places)
    return found


@dataclass(frozen=True)
class _Placed:
    """Where the rows of a parameter lie."""

    places: _Rows
    #: The parameter holds the transposed matrices.
    is_transposed: bool


@dataclass(frozen=True)
class _Codes:
    """A tensor as the rows of packed weights: one number for each, ``[..., rows]``; its last dimensions may be swapped."""

    codes: NDArray[np.int64]
    is_transposed: bool


#: That the numbers of a parameter must be looked at.
_NOT_TOLD: Final = object()
_ROW_BITS: Final = 32


class _PackedWeights:
    """The packed weights of a checkpoint, of those forms that are kept."""

    def __init__(self, weights: Sequence[StoredWeight]) -> None:
        forms = [
            _form_of(weight.layout() if weight.layout is not None else _levels_of(weight).layout) for weight in weights
        ]
        kept = [(weight, form) for weight, form in zip(weights, forms, strict=True) if form is not None]
        self._weights = [weight for weight, _ in kept]
        self._forms = [form for _, form in kept]
        self._numbers = {weight.name: number for number, weight in enumerate(self._weights)}
        self._by_parts: dict[tuple[int, ...], _PackedRows] = {}

    def __bool__(self) -> bool:
        return bool(self._weights)

    def placed(self, recipe: Recipe) -> _Placed | object | None:
        """Where the rows of a deferred tensor lie, told by its recipe; `_NOT_TOLD` where only its numbers tell.

        `None`: it is not made from packed weights of one form alone.
        """
        leaves = list(beginnings(recipe))
        parts = {name for leaf in leaves if isinstance(leaf, ComputedTensor) for name in leaf.parts}
        if all(isinstance(leaf, StoredTensor) or leaf.parts for leaf in leaves) and not parts <= self._numbers.keys():
            return None
        if not parts:
            return None if all(isinstance(leaf, StoredTensor) for leaf in leaves) else _NOT_TOLD
        codes = self._codes(recipe)
        if codes is None:
            return _NOT_TOLD
        flat = codes.codes.reshape(-1)
        places = _Rows((flat >> _ROW_BITS).astype(np.int32), (flat & ((1 << _ROW_BITS) - 1)).astype(np.int32))
        return _Placed(places, codes.is_transposed) if self._has_one_form(places) else None

    def found_by_numbers(self, parameter: torch.Tensor) -> _Placed | None:
        """Where the rows of a parameter lie, told by their numbers."""
        numbers = tuple(range(len(self._weights)))
        if isinstance(parameter, DeferredTensor):
            leaves = [leaf for leaf in beginnings(parameter.recipe) if isinstance(leaf, ComputedTensor)]
            if all(leaf.parts for leaf in leaves):
                numbers = tuple(sorted({self._numbers[name] for leaf in leaves for name in leaf.parts}))
        if numbers not in self._by_parts:
            self._by_parts[numbers] = _PackedRows([(number, self._weights[number]) for number in numbers])
        known = self._by_parts[numbers]
        is_read = isinstance(parameter, DeferredTensor) and parameter.dim() == _MATRIX
        tensor = parameter.materialise() if is_read else parameter  # type: ignore[attr-defined]
        for transposed in (False, True):
            places = known.places(_row_digests(tensor, transposed=transposed))
            if places is not None:
                return _Placed(places, transposed) if self._has_one_form(places) else None
        return None

    def matrix(self, shape: tuple[int, ...], places: _Rows) -> PackedMatrix:
        """The matrix, or the experts' matrices, whose rows lie there."""
        form = self._forms[places.weights[0]]
        return PackedMatrix(
            shape=shape,
            bits=form.bits,
            block_size=form.block_size,
            read=partial(_joined, [partial(_levels_of, weight) for weight in self._weights], places, shape, form),
        )

    def _has_one_form(self, places: _Rows) -> bool:
        return len({self._forms[owner] for owner in np.unique(places.weights)}) == 1

    def _codes(self, recipe: Recipe) -> _Codes | None:
        """The rows that the recipe moves; `None` where it does something else with them."""
        if isinstance(recipe, StoredTensor):
            return None
        if isinstance(recipe, ComputedTensor):
            number = self._numbers.get(recipe.parts[0]) if recipe.is_part else None
            return None if number is None else _codes_of(number, self._weights[number], recipe.shape)
        if recipe.function in _SAME_NUMBERS and recipe.keywords.get("dtype") in (None, torch.float32):
            return self._codes(recipe.arguments[0])
        if recipe.function in _SWAPPING:
            codes = self._codes(recipe.arguments[0])
            swaps = codes is not None and _swaps_last(recipe, codes.codes.ndim + 1)
            return _Codes(codes.codes, not codes.is_transposed) if codes is not None and swaps else None
        if recipe.function not in (_STACK, _CAT):
            return None
        parts = [self._codes(part) for part in recipe.arguments[0]]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts) or len({part.is_transposed for part in whole}) != 1:
            return None
        return _put_together(recipe, [part.codes for part in whole], is_transposed=whole[0].is_transposed)


_ATEN = torch.ops.aten
_STACK, _CAT = _ATEN.stack.default, _ATEN.cat.default
_SAME_NUMBERS: Final = frozenset(
    {_ATEN._to_copy.default, _ATEN.alias.default, _ATEN.clone.default, _ATEN.detach.default}  # noqa: SLF001
)
_SWAPPING: Final = frozenset({_ATEN.t.default, _ATEN.transpose.int, _ATEN.permute.default})


def _codes_of(number: int, weight: StoredWeight, shape: tuple[int, ...]) -> _Codes:
    leading = (*shape[:-2], shape[-1]) if weight.is_transposed else shape[:-1]
    rows = np.arange(math.prod(leading), dtype=np.int64).reshape(leading)
    return _Codes(number << _ROW_BITS | rows, weight.is_transposed)


def _swaps_last(recipe: Applied, rank: int) -> bool:
    if recipe.function is _ATEN.t.default:
        return True
    if recipe.function is _ATEN.transpose.int:
        return {int(axis) % rank for axis in recipe.arguments[1:3]} == {rank - 2, rank - 1}
    return [axis % rank for axis in recipe.arguments[1]] == [*range(rank - 2), rank - 1, rank - 2]


def _put_together(recipe: Applied, parts: Sequence[NDArray[np.int64]], *, is_transposed: bool) -> _Codes | None:
    """What `cat` and `stack` make of rows; `None` where a row is made from several."""
    rank = parts[0].ndim + 1
    given = recipe.arguments[1] if len(recipe.arguments) > 1 else recipe.keywords.get("dim", 0)
    if recipe.function is _STACK:
        return _Codes(np.stack(parts), is_transposed) if given % (rank + 1) == 0 else None
    # The axis of the rows is the last one of the codes.
    axis = given % rank
    row_axis = rank - 1 if is_transposed else rank - 2
    if axis not in (*range(rank - 2), row_axis):
        return None
    return _Codes(np.concatenate(parts, axis=rank - 2 if axis == row_axis else axis), is_transposed)


def _levels_of(weight: StoredWeight) -> GroupedLevels:
    if weight.levels is None:
        raise TypeError(f"{weight.name} is not packed in groups")
    return weight.levels()


class _PackedRows:
    """The rows of packed weights by the digests of their numbers."""

    def __init__(self, weights: Sequence[tuple[int, StoredWeight]]) -> None:
        digests = [_digests(_levels_of(weight).dequantised()) for _, weight in weights]
        counts = [len(part) for part in digests]
        joined = np.concatenate(digests) if digests else np.empty(0, _DIGEST)
        order = np.argsort(joined, kind="stable")
        self._digests = joined[order]
        owners = np.repeat(np.array([number for number, _ in weights], dtype=np.int32), counts)
        numbers = [np.arange(count, dtype=np.int32) for count in counts]
        self._owners = owners[order]
        self._rows = (np.concatenate(numbers) if numbers else np.empty(0, np.int32))[order]

    def places(self, digests: Iterator[_Array]) -> _Rows | None:
        """Where rows with these digests lie; `None` where one lies nowhere."""
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
        return _Rows(np.concatenate(owners), np.concatenate(rows))


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


def _form_of(layout: GroupLayout) -> _Form | None:
    """What the matrix is kept in: blocks of a power of two in each of its own; `None` where it cannot be kept."""
    if not layout.is_adjacent:
        return None
    size = _SMALLEST * 2
    if layout.count > 1:
        size = min(layout.block_size & -layout.block_size, _LARGEST)
    return _Form(4 if layout.bits <= 4 else 8, size) if size >= _SMALLEST else None


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
