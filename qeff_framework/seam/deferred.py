"""Weights that are not read: tensors that know where their numbers lie in a file, and what is done with them.

The loader of Transformers renames, converts, stacks, splits and ties the tensors of a checkpoint. It is given `DeferredTensor`
instead of numbers, so that the finished module says of each parameter from which bytes it is made. Whatever needs numbers gets
them: an operator that does more than move numbers reads its arguments, one tensor at a time.
"""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map

from qeff_framework.errors import CheckpointError

_ATEN = torch.ops.aten

#: Operators that move numbers and compute none. What they return is as deferred as their arguments.
_MOVING = frozenset(
    {
        _ATEN.alias.default,
        _ATEN.cat.default,
        _ATEN.clone.default,
        _ATEN.detach.default,
        _ATEN.expand.default,
        _ATEN.permute.default,
        _ATEN.select.int,
        _ATEN.slice.Tensor,
        _ATEN.split.Tensor,
        _ATEN.split_with_sizes.default,
        _ATEN.squeeze.default,
        _ATEN.squeeze.dim,
        _ATEN.squeeze.dims,
        _ATEN.stack.default,
        _ATEN.t.default,
        _ATEN.transpose.int,
        _ATEN.unbind.int,
        _ATEN.unsqueeze.default,
        _ATEN.view.default,
        _ATEN._unsafe_view.default,  # noqa: SLF001
        _ATEN._reshape_alias.default,  # noqa: SLF001
    }
)
_STACK, _CAT = _ATEN.stack.default, _ATEN.cat.default
_CAST = _ATEN._to_copy.default  # noqa: SLF001
_SAME = frozenset({_ATEN.alias.default, _ATEN.detach.default})
#: Operators whose result has the rows of their argument, each made from that row alone.
_BY_ROWS = frozenset({_CAST, _ATEN.alias.default, _ATEN.clone.default, _ATEN.detach.default})
_FACTORIES = frozenset(
    {
        _ATEN.empty_like.default,
        _ATEN.zeros_like.default,
        _ATEN.ones_like.default,
        _ATEN.full_like.default,
        _ATEN.new_empty.default,
        _ATEN.new_zeros.default,
        _ATEN.new_ones.default,
        _ATEN.new_full.default,
    }
)


class DeferredWriteError(TypeError):
    """A deferred tensor was to be changed in place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """A tensor of a file: contiguous, little-endian."""

    path: Path
    #: Bytes from the start of the file.
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        """The numbers. Raises `CheckpointError` where the file has become shorter."""
        return self.read_rows(0, self.shape[0] if self.shape else 1)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The part ``[start:stop]`` of the first dimension; of a scalar, itself."""
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        result = torch.empty(shape, dtype=self.dtype)
        if not result.numel():
            return result
        buffer = result.reshape(-1).view(torch.uint8).numpy().data
        row = len(buffer) // (stop - start)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * row)
            done = 0
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    raise CheckpointError(
                        f"{self.path.name} became shorter while it was read; run again when the checkpoint is complete"
                    )
                done += count
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredBlocks:
    """Bytes of a file, uint8 ``[..., bytes of a row]``, whose numbers a format of `gguf_blocks` gives."""

    stored: StoredTensor
    #: Number of the format.
    format: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ComputedTensor:
    """Numbers that are computed each time that they are needed, such as those of packed blocks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    #: Returns all numbers.
    compute: Callable[[], torch.Tensor]
    #: Returns the part ``[start:stop]`` of the first dimension, where that takes no more than its share of the work.
    compute_rows: Callable[[int, int], torch.Tensor] | None = None
    #: Tensors of files that are zeros if the numbers are; empty where that is not known.
    sources: tuple[StoredTensor, ...] = ()
    #: Names of the packed weights that the numbers are made from.
    parts: tuple[str, ...] = ()
    #: They are those of the one weight in `parts`, in its order.
    is_part: bool = False
    #: Bytes that a graph can make all of the numbers from, in this shape.
    blocks: StoredBlocks | None = None

    def read(self) -> torch.Tensor:
        """The numbers. Raises `CheckpointError` where they are not of the shape that was said."""
        found = self.compute()
        if tuple(found.shape) != self.shape:
            raise CheckpointError(
                f"a weight was {list(self.shape)} when the checkpoint was looked at and is {list(found.shape)} now; run again "
                "when the checkpoint is complete"
            )
        return found.to(self.dtype)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The part ``[start:stop]`` of the first dimension."""
        if self.compute_rows is None:
            return self.read()[start:stop]
        return self.compute_rows(start, stop).to(self.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Applied:
    """A result of an operator that moves or casts numbers."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    #: Which of several results; `None` where the operator returns one.
    index: int | None = None


Recipe = StoredTensor | ComputedTensor | Applied
#: What a recipe begins with.
_LEAVES = (StoredTensor, ComputedTensor)


class DeferredTensor(torch.Tensor):
    """A tensor on the CPU whose numbers are read when an operator needs them, and not kept."""

    recipe: Recipe
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001

    @staticmethod
    def __new__(cls: type[Self], recipe: Recipe, like: torch.Tensor) -> Self:
        """`like` has the result's shape, strides and type."""
        make: Callable[..., Self] = torch.Tensor._make_wrapper_subclass  # noqa: SLF001
        result = make(cls, like.shape, strides=like.stride(), dtype=like.dtype, device="cpu")
        result.recipe = recipe
        return result

    @classmethod
    def of_file(cls, stored: StoredTensor) -> DeferredTensor:
        """The tensor that lies in a file."""
        return cls(stored, torch.empty(stored.shape, dtype=stored.dtype, device="meta"))

    @classmethod
    def of_computed(cls, computed: ComputedTensor) -> DeferredTensor:
        """The tensor that is computed when it is read."""
        return cls(computed, torch.empty(computed.shape, dtype=computed.dtype, device="meta"))

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        del tensor_contents
        return f"DeferredTensor({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.materialise().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def materialise(self) -> torch.Tensor:
        """The numbers, in new memory."""
        return evaluate(self.recipe)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # The base class has a placeholder here.
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Records what moves numbers; reads numbers for everything else."""
        del types
        keywords = dict(kwargs or {})
        if function in _SAME:
            return cls(args[0].recipe, args[0])
        if function in _FACTORIES:
            return function(*_replaced(args, _blank), **keywords)
        if (function in _MOVING or _is_cast(function, keywords)) and _all_deferred(args):
            return _recorded(function, args, keywords)
        if function._schema.is_mutable and any(  # noqa: SLF001
            isinstance(value, DeferredTensor) for value in _changed(function, args, keywords)
        ):
            raise DeferredWriteError(f"{function} writes into a weight that is not read yet")
        read: dict[int, torch.Tensor] = {}
        return function(
            *_replaced(args, lambda tensor: _once(read, tensor)),
            **_replaced(keywords, lambda tensor: _once(read, tensor)),
        )


def evaluate(recipe: Recipe) -> torch.Tensor:
    """What the recipe says, with the numbers of the files."""
    if isinstance(recipe, _LEAVES):
        return recipe.read()
    arguments = _replaced_recipes(recipe.arguments, evaluate)
    result = recipe.function(*arguments, **recipe.keywords)
    chosen: torch.Tensor = result if recipe.index is None else result[recipe.index]
    return chosen


def pieces(tensor: DeferredTensor, max_bytes: int) -> Iterator[torch.Tensor]:
    """The numbers, so many rows at a time as take at most `max_bytes`; at once where its rows cannot be computed one by one."""
    rows = tensor.shape[0] if tensor.dim() else 1
    size = tensor.dtype.itemsize * tensor.numel()
    if not tensor.dim() or size <= max_bytes or not _has_rows(tensor.recipe):
        yield tensor.materialise()
        return
    step = max(1, max_bytes * rows // size)
    for start in range(0, rows, step):
        yield _rows(tensor.recipe, start, min(rows, start + step))


def is_computed_whole(recipe: Recipe) -> bool:
    """Whether writing the weight takes its numbers at once: they are computed, and not row by row."""
    return any(isinstance(leaf, ComputedTensor) for leaf in beginnings(recipe)) and not _has_rows(recipe)


def _has_rows(recipe: Recipe) -> bool:
    """Whether `_rows` reads no more than it returns."""
    if isinstance(recipe, StoredTensor):
        return True
    if isinstance(recipe, ComputedTensor):
        return recipe.compute_rows is not None
    if recipe.function is _STACK:
        return _dimension(recipe) == 0
    if recipe.function is _CAT:
        return _dimension(recipe) != 0 and all(_has_rows(part) for part in recipe.arguments[0])
    return recipe.function in _BY_ROWS and _has_rows(recipe.arguments[0])


def _dimension(recipe: Applied) -> int:
    """Along which `recipe`, a join of tensors, joins; negative ones, which count from the end, stay so."""
    given = recipe.arguments[1] if len(recipe.arguments) > 1 else recipe.keywords.get("dim", 0)
    return int(given)


def _rows(recipe: Recipe, start: int, stop: int) -> torch.Tensor:
    if isinstance(recipe, _LEAVES):
        return recipe.read_rows(start, stop)
    if recipe.function is _STACK:
        return torch.stack([evaluate(part) for part in recipe.arguments[0][start:stop]])
    if recipe.function is _CAT:
        return torch.cat([_rows(part, start, stop) for part in recipe.arguments[0]], dim=_dimension(recipe))
    result: torch.Tensor = recipe.function(_rows(recipe.arguments[0], start, stop), **recipe.keywords)
    return result


def without_casts(recipe: Recipe) -> Recipe:
    """The same movements of the numbers as they are stored."""
    if isinstance(recipe, _LEAVES):
        return recipe
    if recipe.function is _CAST:
        return without_casts(recipe.arguments[0])
    return Applied(
        function=recipe.function,
        arguments=_replaced_recipes(recipe.arguments, without_casts),
        keywords=recipe.keywords,
        index=recipe.index,
    )


def beginnings(recipe: Recipe) -> Iterator[StoredTensor | ComputedTensor]:
    """What the numbers of a recipe are taken from."""
    if isinstance(recipe, _LEAVES):
        yield recipe
        return
    found: list[Recipe] = []
    _replaced_recipes(recipe.arguments, found.append)
    for inner in found:
        yield from beginnings(inner)


def has_numbers(tensor: torch.Tensor) -> bool:
    """Whether one number is not zero. Of a deferred tensor, whether one is not zero in what it is made from."""
    if isinstance(tensor, DeferredTensor):
        return any(_leaf_has_numbers(leaf) for leaf in beginnings(tensor.recipe))
    # The first row settles it for all but strange matrices.
    return bool(tensor[:1].any()) or bool(tensor.any())


def memory_of(tensor: torch.Tensor) -> Any:
    """Equal for tensors that are one memory, in particular a tied weight under its names."""
    if isinstance(tensor, DeferredTensor):
        return tensor.recipe
    return tensor.data_ptr()


def _leaf_has_numbers(leaf: StoredTensor | ComputedTensor) -> bool:
    if isinstance(leaf, StoredTensor):
        return _stored_numbers(leaf)
    if leaf.sources:
        return any(_stored_numbers(stored) for stored in leaf.sources)
    # The first row settles it for all but strange matrices.
    return bool(leaf.read_rows(0, 1).any()) or bool(leaf.read().any())


def _stored_numbers(stored: StoredTensor) -> bool:
    if _is_hole(stored.path, stored.offset, stored.offset + _size(stored)):
        return False
    rows = stored.shape[0] if stored.shape else 1
    step = max(1, 16 * 2**20 * rows // max(1, _size(stored)))
    starts = [0, *range(1, rows, step)]
    return any(bool(stored.read_rows(start, min(rows, start + (step if start else 1))).any()) for start in starts)


def _is_hole(path: Path, start: int, stop: int) -> bool:
    """Whether nothing was ever written to these bytes of a file, which are zeros then, as where a download was cut."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    with path.open("rb", buffering=0) as file:
        try:
            return os.lseek(file.fileno(), start, os.SEEK_DATA) >= stop
        except OSError as error:
            return error.errno == errno.ENXIO


def _size(stored: StoredTensor) -> int:
    return stored.dtype.itemsize * torch.Size(stored.shape).numel()


def _recorded(function: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """The deferred results."""
    shapes = function(
        *_replaced(args, _shape_only), **{**keywords, **({"device": "meta"} if "device" in keywords else {})}
    )
    arguments = _replaced(args, operator.attrgetter("recipe"))
    plain = {name: value for name, value in keywords.items() if name not in ("device", "layout", "pin_memory")}
    if isinstance(shapes, torch.Tensor):
        return DeferredTensor(Applied(function=function, arguments=arguments, keywords=plain), shapes)
    return [
        DeferredTensor(Applied(function=function, arguments=arguments, keywords=plain, index=index), shape)
        for index, shape in enumerate(shapes)
    ]


def _is_cast(function: Any, keywords: Mapping[str, Any]) -> bool:
    """A change of the floating-point type, on the CPU."""
    dtype, device = keywords.get("dtype"), keywords.get("device")
    return (
        function is _CAST
        and (dtype is None or dtype.is_floating_point)
        and (device is None or torch.device(device).type == "cpu")
        and not set(keywords) - {"dtype", "device", "layout", "pin_memory", "non_blocking", "memory_format"}
    )


def _all_deferred(args: Sequence[Any]) -> bool:
    tensors: list[Any] = []
    _replaced_any(args, tensors.append)
    return bool(tensors) and all(isinstance(tensor, DeferredTensor) for tensor in tensors)


def _changed(function: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operator writes to."""
    for number, argument in enumerate(function._schema.arguments):  # noqa: SLF001
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[number] if number < len(args) else keywords.get(argument.name)


def _once(read: dict[int, torch.Tensor], tensor: DeferredTensor) -> torch.Tensor:
    if id(tensor) not in read:
        read[id(tensor)] = tensor.materialise()
    return read[id(tensor)]


def _blank(tensor: DeferredTensor) -> torch.Tensor:
    """Memory that nobody touches; only its shape and type are read."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _shape_only(tensor: DeferredTensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _replaced(tree: Any, replace: Callable[[DeferredTensor], Any]) -> Any:
    return tree_map(lambda leaf: replace(leaf) if isinstance(leaf, DeferredTensor) else leaf, tree)


def _replaced_any(tree: Any, call: Callable[[Any], Any]) -> None:
    tree_map(lambda leaf: call(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def _replaced_recipes(tree: Any, replace: Callable[[Recipe], Any]) -> Any:
    return tree_map(lambda leaf: replace(leaf) if isinstance(leaf, (*_LEAVES, Applied)) else leaf, tree)
