"""Index arithmetic that stays real while a model is traced.

A tracer replaces every tensor by one without data, also those that depend on nothing but constants: positions, sizes of images,
where windows begin. A model that reads such a tensor on the host (``tolist``, a loop over it, a slice up to it) cannot be traced
then. This mode computes with real tensors whatever has only real tensors and numbers as arguments. What meets a traced tensor
becomes a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

#: An attribute of tensors that were computed from constants.
_MARK = "_qeff_constant"
#: Functions that return memory as it is.
_UNWRITTEN = frozenset(
    {torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided}
)
_REAL = (torch.Tensor, torch.nn.Parameter)


class ConstantsStayReal(TorchFunctionMode):
    """Keeps what depends on constants only out of the trace."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        given = dict(kwargs or {})
        if all(_is_real(leaf) for leaf in pytree.tree_leaves((args, given))):
            with _disable_current_modes():
                result = func(*args, **given)
                if func in _UNWRITTEN:
                    # What lies there would become a part of the graph, another one in each export.
                    result.zero_()
                return _marked(result)
        if func is torch.Tensor.__getitem__ and _is_real_mask(args[1]):
            with _disable_current_modes():
                places = args[1].nonzero(as_tuple=True)
            return func(args[0], places)
        return func(*args, **given)


def _marked(result: Any) -> Any:
    for leaf in pytree.tree_leaves(result):
        if type(leaf) is torch.Tensor:
            setattr(leaf, _MARK, True)
    return result


def constant_content(tensor: torch.Tensor) -> bytes | None:
    """The bytes of a constant that such a mode has computed; `None` for any other tensor."""
    if not getattr(tensor, _MARK, False):
        return None
    with _disable_current_modes():
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _is_real_mask(index: object) -> bool:
    """A mask without data would choose an unknown number of elements; this one chooses the same for every image."""
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool and _is_real(index)


def _is_real(leaf: object) -> bool:
    if isinstance(leaf, torch.Tensor):
        return type(leaf) in _REAL and leaf.device.type != "meta"
    return not isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool))
