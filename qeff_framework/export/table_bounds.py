"""Lets a trace take over a bound of a dimension where the model's code has one, instead of being repeated with it.

A model that reads its positions from a table of, say, 512 rows takes no longer texts, and one that makes frames of, say, 220
samples no shorter clips. Torch traces it to the end and then refuses the dimension that was said to have no bound, with a bound
to try: a second trace of the same operators would follow. So the dimension gets the bound when the tracer finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.export import Dim

#: The least size with which the tracer begins.
_TRACED_FROM = 2


@contextlib.contextmanager
def taking_bounds(graph: torch.nn.Module, dynamic_shapes: tuple[Any, ...]) -> Iterator[None]:
    """While the body traces `graph`, its dimensions get the bounds that are found. One of a single size is still refused.

    With a version of torch that keeps its bounds elsewhere they are refused as well, behind the trace.
    """

    def watch(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        environment: Any = None
        names: dict[Any, str] = {}
        for size, dim in _symbols(arguments, dynamic_shapes):
            environment = size.node.shape_env
            names[size.node.expr] = dim.__name__
        update = getattr(environment, "_update_var_to_range", None)
        tracked = getattr(environment, "tracked_fakes", None)
        if update is not None and tracked and "_update_var_to_range" not in vars(environment):
            # An attribute of this environment alone: it goes when the trace does.
            environment._update_var_to_range = _handing_on(environment, update, names, _constraints(tracked, names))  # noqa: SLF001

    # The tracer calls the graph itself with its own arguments, whose sizes are the symbols.
    hook = graph.register_forward_pre_hook(watch)
    try:
        yield
    finally:
        hook.remove()


def _handing_on(
    environment: Any, update: Callable[..., None], names: Mapping[Any, str], constraints: Mapping[str, list[Any]]
) -> Callable[..., None]:
    def update_and_hand_on(symbol: Any, *args: Any, **kwargs: Any) -> None:
        update(symbol, *args, **kwargs)
        if symbol not in names:
            return
        found = environment.var_to_range[symbol]
        for sizes, axis in constraints[names[symbol]]:
            known = sizes[axis].vr
            lower = found.lower if found.lower > _TRACED_FROM else known.lower
            narrowed = type(known)(max(known.lower, lower), min(known.upper, found.upper))
            if found.lower < found.upper and narrowed != known:
                sizes[axis] = dataclasses.replace(sizes[axis], vr=narrowed)

    return update_and_hand_on


def _constraints(tracked: Any, names: Mapping[Any, str]) -> dict[str, list[Any]]:
    """Where the tracer notes what a dimension of this name is to be, for each tensor that has it: a list and a place in it."""
    places: dict[str, list[Any]] = {name: [] for name in names.values()}
    for tensor in tracked:
        sizes = getattr(tensor.symbolic_context, "constraint_sizes", None) or ()
        for axis, constraint in enumerate(sizes):
            size = tensor.fake.shape[axis] if constraint is not None else None
            name = names.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if name is not None and hasattr(constraint, "vr"):
                places[name].append((sizes, axis))
    return places


def _symbols(arguments: Any, shapes: Any) -> Iterator[tuple[torch.SymInt, Dim]]:
    """The symbolic sizes of `arguments`, with the dimensions of `shapes` that they stand for."""
    if isinstance(arguments, torch.Tensor):
        # Torch takes both: dimensions by axis, and one for each axis.
        dims: Any = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes or ())
        for axis, dim in dims:
            size = arguments.shape[axis]
            if isinstance(size, torch.SymInt) and isinstance(dim, Dim) and size.node.expr.is_symbol:
                yield size, dim
    elif isinstance(arguments, (list, tuple)):
        for argument, shape in zip(arguments, shapes or (), strict=False):
            yield from _symbols(argument, shape)
