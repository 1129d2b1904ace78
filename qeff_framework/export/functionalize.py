"""Replaces in-place operators of a traced program by operators that return their result, where that is certainly the same.

A tensor may be replaced by its new value if its memory was made by an operator that returns new memory, and if nobody else
holds a view of that memory. What is not certain stays as it is, and torch's own functionalization, which traces the whole
program again, takes care of it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

_ATEN = torch.ops.aten

_OUT_OF_PLACE: Mapping[Any, Any] = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.sub_.Tensor: _ATEN.sub.Tensor,
    _ATEN.mul_.Tensor: _ATEN.mul.Tensor,
    _ATEN.div_.Tensor: _ATEN.div.Tensor,
    _ATEN.scatter_.value: _ATEN.scatter.value,
    _ATEN.scatter_.src: _ATEN.scatter.src,
    _ATEN.masked_fill_.Scalar: _ATEN.masked_fill.Scalar,
    _ATEN.index_put_.default: _ATEN.index_put.default,
    _ATEN.index_add_.default: _ATEN.index_add.default,
    _ATEN.copy_.default: _ATEN.copy.default,
}
#: Those whose other arguments are indices.
_INDEXED = frozenset({_ATEN.scatter_.value, _ATEN.scatter_.src, _ATEN.index_put_.default, _ATEN.index_add_.default})
#: Operators that write what an operator for a part of a tensor would read.
_SCATTER: Mapping[Any, Any] = {
    _ATEN.slice.Tensor: _ATEN.slice_scatter.default,
    _ATEN.select.int: _ATEN.select_scatter.default,
}
#: Composite operators that always return new memory.
_NEW_MEMORY = frozenset(
    {
        *(_ATEN.linear.default, _ATEN.matmul.default, _ATEN.softmax.int, _ATEN.layer_norm.default),
        *(_ATEN.where.ScalarOther, _ATEN.where.ScalarSelf, _ATEN.where.Scalar),
    }
)

#: Views of all of a tensor.
_TURNED = frozenset({_ATEN.transpose.int, _ATEN.permute.default})

#: Operators that return views although their schema does not tell.
_DISGUISED_VIEWS = frozenset(
    {_ATEN._unsafe_view.default, _ATEN.unsafe_split.Tensor, _ATEN.unsafe_split_with_sizes.default}  # noqa: SLF001
)


def functionalize(graph: torch.fx.Graph) -> None:
    """Changes `graph` in place."""
    _copy_results(graph)
    _broadcast_copies(graph)
    order: dict[torch.fx.Node, float] = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is _ATEN.unsqueeze_.default and not _is_changed(node.args[0]):
            # It changes the shape for all that read the tensor afterwards, and no number.
            node.target = _ATEN.unsqueeze.default
            _replace_after(node.args[0], node, order)
            continue
        if node.op != "call_function" or node.target not in _OUT_OF_PLACE or not _keeps_dtype(node):
            continue
        changed = node.args[0]
        if _owns_memory(changed) and _only_read_before(changed, node, order):
            node.target = _OUT_OF_PLACE[node.target]
            _replace_after(changed, node, order)
        elif node.target is _ATEN.copy_.default and _is_part_for(changed, node):
            bases = _bases(changed)
            parts = zip(bases, (changed, *bases), strict=False)
            if (
                _owns_memory(bases[-1])
                and not node.users
                and all(_only_read_before(base, node, order, part=part) for base, part in parts)
            ):
                _write_part(graph, node, bases, order)


def _bases(part: torch.fx.Node) -> list[torch.fx.Node]:
    """What `part` is a part of, from the inside to the outside: parts themselves, and at last a tensor that is none."""
    bases: list[Any] = [part.args[0]]
    while bases[-1].target in _SCATTER:
        bases.append(bases[-1].args[0])
    return bases


def _write_part(
    graph: torch.fx.Graph, change: torch.fx.Node, bases: list[torch.fx.Node], order: dict[torch.fx.Node, float]
) -> None:
    """Makes `change`, which copies into a part of the first of `bases`, return this base; the others are made anew after it."""
    part: Any = change.args[0]
    change.target = _SCATTER[part.target]
    change.args = (bases[0], change.args[1], *part.args[1:])
    change.meta = {**change.meta, "val": bases[0].meta["val"]}
    graph.erase_node(part)
    last = change

    def then(target: Any, source: torch.fx.Node, *args: Any, like: torch.fx.Node) -> torch.fx.Node:
        nonlocal last
        with graph.inserting_after(last):
            made = graph.call_function(target, (source, *args))
        made.meta["val"] = like.meta["val"]
        order[made] = order[last] + 1 / (2 * len(bases))  # before the next node: there are two for each base but one
        last = made
        return made

    written = change
    for view, base in pairwise(bases):
        written = then(_SCATTER[view.target], base, written, *view.args[1:], like=base)
    _replace_after(bases[-1], written, order)
    for view in reversed(bases[:-1]):
        written = then(view.target, written, *view.args[1:], like=view)
        _replace_after(view, written, order)


def _copy_results(graph: torch.fx.Graph) -> None:
    """Makes a fill with a number a copy of such a tensor, and another change of a part a copy of what it makes of the part."""
    for node in graph.nodes:
        if node.target is _ATEN.fill_.Tensor:
            node.target = _ATEN.copy_.default  # It broadcasts the one number.
        is_fill = node.target is _ATEN.fill_.Scalar
        if not is_fill and (node.target not in _OUT_OF_PLACE or node.target is _ATEN.copy_.default):
            continue
        changed = node.args[0]
        is_part = changed.target in _SCATTER
        if not is_fill and not (is_part and not node.users and _keeps_dtype(node)):
            continue
        with graph.inserting_before(node):
            # A part that only the copy reads can be written in place of the whole: what is read is another one.
            read = graph.node_copy(changed) if is_part else changed
            made = graph.call_function(
                _ATEN.full_like.default if is_fill else _OUT_OF_PLACE[node.target], (read, *node.args[1:]), node.kwargs
            )
        made.meta["val"] = changed.meta["val"].new_empty(changed.meta["val"].shape)
        node.target, node.args, node.kwargs = _ATEN.copy_.default, (changed, made), {}


def _broadcast_copies(graph: torch.fx.Graph) -> None:
    """Gives each copied value the shape of what it replaces: torch's translation of ``copy`` does not broadcast."""
    for node in graph.nodes:
        if node.target is not _ATEN.copy_.default:
            continue
        changed, value = node.args[:2]
        if _shape(value) is not None and _shape(value) != _shape(changed):
            with graph.inserting_before(node):
                # A part that only the copy reads can be written in place of the whole: what is read is another one.
                like = graph.node_copy(changed) if changed.target in _SCATTER else changed
                expanded = graph.call_function(_ATEN.expand_as.default, (value, like))
            expanded.meta["val"] = value.meta["val"].expand_as(changed.meta["val"])
            node.update_arg(1, expanded)


def _is_part_for(view: torch.fx.Node, user: torch.fx.Node) -> bool:
    """Tells whether `view` is a part of a tensor that only `user` reads, with a value of the same shape."""
    return view.target in _SCATTER and list(view.users) == [user] and view.meta["val"].shape == _shape(user.args[1])


def _shape(value: Any) -> Any:
    return value.meta["val"].shape if isinstance(value, torch.fx.Node) else None


def _replace_after(old: torch.fx.Node, new: torch.fx.Node, order: Mapping[torch.fx.Node, float]) -> None:
    """Lets every reader of `old` that comes after `new` read `new`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: order[user] > order[new])


def _keeps_dtype(node: torch.fx.Node) -> bool:
    """Tells whether the out-of-place form returns the type that the in-place form keeps."""
    values = [arg.meta.get("val") for arg in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    indices = {torch.int64} if node.target in _INDEXED else set()
    masks = {torch.bool} if node.target in (_ATEN.masked_fill_.Scalar, _ATEN.index_put_.default) else set()
    return len(dtypes - indices - masks) <= 1


def _is_changed(node: Any) -> bool:
    """Tells whether an operator has changed the tensor in place, which then has several nodes; each would get the new shape."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001


def _owns_memory(node: Any) -> bool:
    """Tells whether an operator that returns new memory has made this tensor, or what this is the only view of."""
    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return False
    if node.target in _TURNED:
        source: Any = node.args[0]
        return list(source.users) == [node] and _owns_memory(source)
    if node.target is operator.getitem:
        return _returns_new_memory(node.args[0].target) if isinstance(node.args[0], torch.fx.Node) else False
    return _returns_new_memory(node.target)


def _returns_new_memory(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:  # noqa: SLF001
        return False
    if target in _DISGUISED_VIEWS:
        return False
    if target in _NEW_MEMORY:
        return True
    # The schema of a composite operator does not tell that it may return its argument, as dropout does.
    name: str = target.name()  # type: ignore[no-untyped-call]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")  # noqa: SLF001
    return not composite and all(result.alias_info is None for result in target._schema.returns)  # noqa: SLF001


def _only_read_before(
    base: torch.fx.Node,
    change: torch.fx.Node,
    order: Mapping[torch.fx.Node, float],
    *,
    part: torch.fx.Node | None = None,
) -> bool:
    """Tells whether what reads `base` before `change` keeps no view of it for later; what comes after gets the new value."""
    if any(user.op == "output" for user in base.users):
        return False  # The program's signature names its results.
    # The shape is all that expand_as reads of its second argument.
    earlier = [
        user for user in base.users if order[user] < order[change] and user is not part and not _reads_shape(user, base)
    ]
    return all(_is_read_out(user, change, order) for user in earlier if user.op == "call_function")


def _is_read_out(reader: torch.fx.Node, change: torch.fx.Node, order: Mapping[torch.fx.Node, float]) -> bool:
    """Tells whether nobody sees through the result of `reader` what `change` does."""
    if _returns_new_memory(reader.target):
        return True
    if not isinstance(reader.target, torch._ops.OpOverload) or reader.target._schema.is_mutable:  # noqa: SLF001
        return False
    # It may return a view, through which its own readers look.
    return all(
        user is change or (order[user] < order[change] and _is_read_out(user, change, order)) for user in reader.users
    )


def _reads_shape(user: torch.fx.Node, base: torch.fx.Node) -> bool:
    return user.target is _ATEN.expand_as.default and user.args[0] is not base
