"""Replaces in-place operators of a traced program by operators that return their result, where that is certainly the same.

A tensor may be replaced by its new value if its memory was made by an operator that returns new memory, and if nobody else
holds a view of that memory. What is not certain stays as it is, and torch's own functionalization, which traces the whole
program again, takes care of it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
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
    _ATEN.copy_.default: _ATEN.copy.default,
}
#: Operators that write what an operator for a part of a tensor would read.
_SCATTER: Mapping[Any, Any] = {
    _ATEN.slice.Tensor: _ATEN.slice_scatter.default,
    _ATEN.select.int: _ATEN.select_scatter.default,
}
#: Composite operators that always return new memory.
_NEW_MEMORY = frozenset({_ATEN.linear.default, _ATEN.matmul.default, _ATEN.softmax.int})

#: Operators that return views although their schema does not tell.
_DISGUISED_VIEWS = frozenset(
    {_ATEN._unsafe_view.default, _ATEN.unsafe_split.Tensor, _ATEN.unsafe_split_with_sizes.default}  # noqa: SLF001
)


def functionalize(graph: torch.fx.Graph) -> None:
    """Changes `graph` in place."""
    _broadcast_copies(graph)
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _OUT_OF_PLACE or not _keeps_dtype(node):
            continue
        changed = node.args[0]
        if _owns_memory(changed) and _only_read_before(changed, node, order):
            node.target = _OUT_OF_PLACE[node.target]
            _replace_after(changed, node, order)
        elif node.target is _ATEN.copy_.default and _is_part_for(changed, node):
            base = changed.args[0]
            if _owns_memory(base) and _only_read_before(base, node, order, part=changed) and not node.users:
                node.target = _SCATTER[changed.target]
                node.args = (base, node.args[1], *changed.args[1:])
                node.meta = {**node.meta, "val": base.meta["val"]}
                _replace_after(base, node, order)
                graph.erase_node(changed)


def _broadcast_copies(graph: torch.fx.Graph) -> None:
    """Gives each copied value the shape of what it replaces: torch's translation of ``copy`` does not broadcast."""
    for node in graph.nodes:
        if node.target is not _ATEN.copy_.default:
            continue
        changed, value = node.args[:2]
        if _shape(value) is not None and _shape(value) != _shape(changed):
            with graph.inserting_before(node):
                expanded = graph.call_function(_ATEN.expand_as.default, (value, changed))
            expanded.meta["val"] = value.meta["val"].expand_as(changed.meta["val"])
            node.update_arg(1, expanded)


def _is_part_for(view: torch.fx.Node, user: torch.fx.Node) -> bool:
    """Tells whether `view` is a part of a tensor that only `user` reads, with a value of the same shape."""
    return view.target in _SCATTER and list(view.users) == [user] and view.meta["val"].shape == _shape(user.args[1])


def _shape(value: Any) -> Any:
    return value.meta["val"].shape if isinstance(value, torch.fx.Node) else None


def _replace_after(old: torch.fx.Node, new: torch.fx.Node, order: Mapping[torch.fx.Node, int]) -> None:
    """Lets every reader of `old` that comes after `new` read `new`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: order[user] > order[new])


def _keeps_dtype(node: torch.fx.Node) -> bool:
    """Tells whether the out-of-place form returns the type that the in-place form keeps."""
    values = [arg.meta.get("val") for arg in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    indices = {torch.int64} if node.target in (_ATEN.scatter_.value, _ATEN.scatter_.src) else set()
    masks = {torch.bool} if node.target is _ATEN.masked_fill_.Scalar else set()
    return len(dtypes - indices - masks) <= 1


def _owns_memory(node: Any) -> bool:
    """Tells whether an operator that returns new memory has made this tensor."""
    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return False
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
    order: Mapping[torch.fx.Node, int],
    *,
    part: torch.fx.Node | None = None,
) -> bool:
    """Tells whether what reads `base` before `change` keeps no view of it; what comes after gets the new value."""
    if any(user.op == "output" for user in base.users):
        return False  # The program's signature names its results.
    # The shape is all that expand_as reads of its second argument.
    earlier = [
        user for user in base.users if order[user] < order[change] and user is not part and not _reads_shape(user, base)
    ]
    return all(_returns_new_memory(user.target) for user in earlier if user.op == "call_function")


def _reads_shape(user: torch.fx.Node, base: torch.fx.Node) -> bool:
    return user.target is _ATEN.expand_as.default and user.args[0] is not base
