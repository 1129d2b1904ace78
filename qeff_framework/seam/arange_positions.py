"""Positions for models that number the tokens of a step by their index instead of by the positions that they are given.

Such a model computes ``torch.arange(seq_len)``, as if every step began at the start of a text. While a model is traced, that
call is answered with the positions of the step. They differ from row to row, where the model expects one vector for all rows:
so it gets a value that looks like ``[S]`` and holds ``[B, S]``. Whatever the model computes from it is computed for each row
(`torch.vmap`), until it meets a tensor whose first axis are the rows and becomes an ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qeff_framework.errors import UnsupportedModelError


class PositionalArangeMode(TorchFunctionMode):
    """Answers ``torch.arange`` over the tokens of a step with their positions."""

    def __init__(self, position_ids: torch.Tensor) -> None:
        super().__init__()
        self._positions = position_ids.clamp(min=0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        given = dict(kwargs or {})
        if self.answers(func, args, given):
            dtype = given.get("dtype")
            return PerRow(self._positions if dtype is None else self._positions.to(dtype))
        return func(*args, **given)

    def answers(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the call counts the tokens of the step."""
        if func is not torch.arange:
            return False
        bounds = [*args, *(kwargs[name] for name in ("start", "end", "step") if name in kwargs)]
        start, end = (0, bounds[0]) if len(bounds) == 1 else (bounds[0], bounds[1])
        counting = len(bounds) < 3 or bounds[2] == 1
        return counting and _same_size(start, 0) and _same_size(end, self._positions.shape[1])


class PositionalCountMode(TorchFunctionMode):
    """Answers a count of the tokens of a step, ``torch.cumsum(input_ids != padding, dim=1)``, with their positions plus one.

    The count of a whole text is that, and the count of a step begins again at one. Transformers adds the length of the cache to
    it, which is 0 here. It is the same where no token of a decoder's text is the padding token, whose place is not counted.
    """

    def __init__(self, position_ids: torch.Tensor) -> None:
        super().__init__()
        self._counts = position_ids.clamp(min=-1) + 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        given = dict(kwargs or {})
        if self.answers(func, args, given):
            return self._counts.to(given.get("dtype") or torch.int64)
        return func(*args, **given)

    def answers(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the call counts the tokens of the step."""
        if func not in (torch.cumsum, torch.Tensor.cumsum):
            return False
        counted = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs["dim"]
        if not isinstance(counted, torch.Tensor) or counted.is_floating_point() or counted.dim() != 2:
            return False
        sizes = zip(counted.shape, self._counts.shape, strict=True)
        return axis in (1, -1) and all(_same_size(size, other) for size, other in sizes)


PositionMode = type[PositionalArangeMode] | type[PositionalCountMode]


#: What the modes answer some calls of.
_COUNTS: Final = (torch.arange, torch.cumsum, torch.Tensor.cumsum)


class CountWatch(TorchFunctionMode):
    """Notes in `found` which of the modes would answer a call, and answers none."""

    def __init__(self, position_ids: torch.Tensor, *, found: set[PositionMode]) -> None:
        super().__init__()
        self._modes = (PositionalCountMode(position_ids), PositionalArangeMode(position_ids))
        self._found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        given = kwargs or {}
        # Every attribute of a tensor that a model reads is a call: others than these are let through at once.
        if func in _COUNTS:
            self._found.update(type(mode) for mode in self._modes if mode.answers(func, args, given))
        return func(*args, **given)


class PerRow:
    """A value of each row of the step. It looks like one row's: `held` is ``[B, *shape]``."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @property
    def shape(self) -> torch.Size:
        """Shape of one row's value."""
        return self.held.shape[1:]

    @property
    def ndim(self) -> int:
        """Number of axes of one row's value."""
        return self.held.dim() - 1

    def dim(self) -> int:
        """Number of axes of one row's value."""
        return self.held.dim() - 1

    def size(self, axis: int | None = None) -> Any:
        """Shape, or the size of one axis."""
        return self.shape if axis is None else self.shape[axis]

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.held.dtype

    @property
    def device(self) -> torch.device:
        """That of the values."""
        return self.held.device

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function that takes one of these."""
        del types
        return _apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        method = getattr(torch.Tensor, name)
        if not callable(method):
            raise UnsupportedModelError(f"it asks the positions that it numbers tokens by for '{name}'")
        return partial(_method, method, self)

    def __getitem__(self, index: Any) -> Any:
        return _apply(torch.Tensor.__getitem__, (self, index), {})

    def __len__(self) -> int:
        return self.shape[0]


def _method(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _apply(method, args, kwargs)


def _operator(name: str) -> Callable[..., Any]:
    def call(self: PerRow, *others: Any) -> Any:
        return _apply(getattr(torch.Tensor, name), (self, *others), {})

    return call


_ELEMENTWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "pow", "neg", "abs", "sign"),
        *("exp", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "floor", "ceil", "round"),
        *("clamp", "clip", "minimum", "maximum", "float", "long", "int", "bool", "half", "to", "type_as", "contiguous"),
        *("where", "zeros_like", "ones_like", "full_like"),
        *(
            "__add__",
            "__sub__",
            "__mul__",
            "__truediv__",
            "__floordiv__",
            "__mod__",
            "__pow__",
            "__neg__",
            "__invert__",
        ),
        *("__radd__", "__rsub__", "__rmul__", "__rtruediv__", "__rpow__", "lt", "le", "gt", "ge", "eq", "ne"),
        *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__and__", "__or__"),
    }
)

for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "radd", "rsub", "rmul", "rtruediv", "rpow"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "neg", "invert"),
):
    setattr(PerRow, f"__{_name}__", _operator(f"__{_name}__"))


def _apply(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
    rows = [leaf for leaf in leaves if isinstance(leaf, PerRow)]
    rank = _rank_of_batched_result(leaves, rows[0].held.shape[0])
    if rank is not None:
        args, kwargs = pytree.tree_unflatten(
            [_aligned(leaf, rank) if isinstance(leaf, PerRow) else leaf for leaf in leaves], tree
        )
        return func(*args, **kwargs)

    if func.__name__ in _ELEMENTWISE or _of_two_values(func, args):
        # Axes play no part; and `torch.vmap` would turn the numbers among the arguments into constants of its own.
        plain = [leaf.dim() + 1 for leaf in leaves if isinstance(leaf, torch.Tensor)]
        width = max([*(row.held.dim() for row in rows), *plain])
        args, kwargs = pytree.tree_unflatten(
            [_aligned(leaf, width) if isinstance(leaf, PerRow) else leaf for leaf in leaves], tree
        )
        return PerRow(func(*args, **kwargs))

    if func.__name__ in _ALONG_LAST_AXES and _last_axes_only(args, kwargs, transposed=func.__name__ == "transpose"):
        args, kwargs = pytree.tree_unflatten([leaf.held if isinstance(leaf, PerRow) else leaf for leaf in leaves], tree)
        return pytree.tree_map_only(torch.Tensor, PerRow, func(*args, **kwargs))
    rule = _RULES.get(func.__name__)
    if rule is not None and (result := rule(*args, **kwargs)) is not None:
        return PerRow(result)

    def for_one_row(*values: torch.Tensor) -> Any:
        remaining = iter(values)
        args, kwargs = pytree.tree_unflatten(
            [next(remaining) if isinstance(leaf, PerRow) else leaf for leaf in leaves], tree
        )
        return func(*args, **kwargs)

    result = torch.vmap(for_one_row)(*(row.held for row in rows))
    return pytree.tree_map_only(torch.Tensor, PerRow, result)


def _of_two_values(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """``torch.min(a, b)``, which is elementwise, and not ``torch.min(a, dim)``."""
    return func.__name__ in ("min", "max") and len(args) == 2 and isinstance(args[1], PerRow | torch.Tensor)


def _unsqueeze(row: Any, dim: int) -> torch.Tensor | None:
    return row.held.unsqueeze(dim + 1 if dim >= 0 else dim) if isinstance(row, PerRow) else None


def _permute(row: Any, *dims: Any) -> torch.Tensor | None:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    if not isinstance(row, PerRow) or min(order) < 0:
        return None
    return row.held.permute(0, *(dim + 1 for dim in order))


def _embedding(row: Any, weight: Any, *others: Any, **options: Any) -> torch.Tensor | None:
    if not isinstance(row, PerRow) or isinstance(weight, PerRow):
        return None
    return torch.nn.functional.embedding(row.held, weight, *others, **options)


def _getitem(row: Any, index: Any) -> torch.Tensor | None:
    indices = index if isinstance(index, tuple) else (index,)
    simple = all(item is None or item is Ellipsis or isinstance(item, slice | int) for item in indices)
    return row.held[(slice(None), *indices)] if isinstance(row, PerRow) and simple else None


def _reshape(row: Any, *shape: Any) -> torch.Tensor | None:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    if not isinstance(row, PerRow) or any(isinstance(size, torch.dtype) for size in sizes):
        return None
    return row.held.reshape(row.held.shape[0], *sizes)


def _reshape_as(row: Any, other: Any) -> torch.Tensor | None:
    both = isinstance(row, PerRow) and isinstance(other, PerRow)
    return row.held.reshape(other.held.shape) if both else None


_ALONG_LAST_AXES = frozenset({"chunk", "split", "stack", "cat", "repeat_interleave", "transpose", "flip"})


def _last_axes_only(args: Sequence[Any], kwargs: Mapping[str, Any], *, transposed: bool) -> bool:
    """Whether every axis that the call names is counted from the end, where one row's value is like that of all rows."""
    named = [value for name, value in kwargs.items() if name.startswith("dim")]
    placed = [value for value in args[-2:] if type(value) is int]
    # A transposition names two axes; of the other calls the last number is the axis, and one before it a size or a count.
    axes = named + placed if transposed else named or placed[-1:]
    return bool(axes) and all(type(axis) is int and axis < 0 for axis in axes)


#: What `torch.vmap` would do, without the constants that it leaves in a traced graph.
_RULES: Mapping[str, Callable[..., torch.Tensor | None]] = {
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "embedding": _embedding,
    "__getitem__": _getitem,
    "reshape": _reshape,
    "view": _reshape,
    "reshape_as": _reshape_as,
}


def _rank_of_batched_result(leaves: Sequence[Any], batch: Any) -> int | None:
    """Rank of the result if rows come into it: as the first axis of another tensor, or as the first size of a target shape."""
    ranks = [
        leaf.dim()
        for leaf in leaves
        if isinstance(leaf, torch.Tensor) and leaf.dim() and _same_size(leaf.shape[0], batch)
    ]
    sizes = [leaf for leaf in leaves if isinstance(leaf, int | torch.SymInt) and not isinstance(leaf, bool)]
    if not ranks and sizes and _same_size(sizes[0], batch):
        ranks.append(len(sizes))
    return max(ranks, default=None)


def _aligned(row: PerRow, rank: int) -> torch.Tensor:
    """The value of all rows with `rank` axes, the rows first. Where one row has as many axes, its first one gives way."""
    held = row.held
    if row.dim() >= rank:
        if row.dim() > rank or row.shape[0] != 1:
            raise UnsupportedModelError(
                f"it combines token indices, of shape {tuple(row.shape)}, with tensors of {rank} axes"
            )
        return held.squeeze(1)
    return held.reshape(held.shape[0], *(1,) * (rank - held.dim()), *held.shape[1:])


def _same_size(first: Any, second: Any) -> bool:
    """Whether two sizes are one symbol, not only equal in the example."""
    if isinstance(first, torch.SymInt) and isinstance(second, torch.SymInt):
        return bool(first.node.expr == second.node.expr)
    if isinstance(first, torch.SymInt) or isinstance(second, torch.SymInt):
        return False
    return type(first) is int and first == second
