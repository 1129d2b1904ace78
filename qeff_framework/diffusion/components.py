"""Components of a pipeline whose code is somebody else's: of the recorder, or of programs.

A component keeps its class and its structure, which pipelines look at (``unet.config.in_channels``), and has no weights: its
parameters are memory that nobody touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from qeff_framework.diffusion.first_block import KeptBlocks

#: ``(component, method, the method itself, positional arguments, keywords) -> result``.
Handler = Callable[[str, str, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]
#: What a pipeline calls a component for. Everything else that it asks is answered by the structure.
METHODS = ("forward", "decode", "encode")


def hand_over(component: torch.nn.Module, name: str, handler: Handler) -> torch.nn.Module:
    """Lets `handler` answer the calls of `component`, which is changed for good."""
    own = type(component)
    replaced = {
        method: _handed(name, method, getattr(own, method), handler) for method in METHODS if hasattr(own, method)
    }
    if hasattr(own, "cache_context"):
        replaced |= {"cache_context": _cache_context, "_reset_stateful_cache": reset_kept_blocks}
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    component.__class__ = type(own.__name__, (own,), {**replaced, **names})
    return component


def _handed(name: str, method: str, function: Callable[..., Any], handler: Handler) -> Callable[..., Any]:
    def handed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return handler(name, method, function.__get__(self), args, kwargs)

    return handed


@contextmanager
def _cache_context(self: Any, name: str, **told: Any) -> Iterator[None]:
    """Takes the place of diffusers' own: the calls in it belong to `name`, such as those with a prompt."""
    del told
    self._cache_name = name
    try:
        yield
    finally:
        self._cache_name = ""


def kept_blocks(component: Any) -> KeptBlocks:
    """What the component keeps from step to step for the calls that are made now."""
    kept: KeptBlocks = (
        vars(component).setdefault("_kept_blocks", {}).setdefault(getattr(component, "_cache_name", ""), KeptBlocks())
    )
    return kept


def reset_kept_blocks(component: Any, recurse: bool = True) -> None:
    """Forgets what was kept: another picture begins."""
    del recurse
    vars(component).pop("_kept_blocks", None)


def without_weights(build: Callable[[], torch.nn.Module], buffers: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """What `build` returns, with parameters that were never computed, and with these buffers."""
    from accelerate import init_empty_weights

    from qeff_framework.seam.isolation import exporting

    with exporting(), init_empty_weights(include_buffers=False):
        module = build()
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty(
                parameter.shape, dtype=torch.float32 if parameter.is_floating_point() else parameter.dtype
            )
            setattr(part, name, torch.nn.Parameter(empty, requires_grad=False))
    for name, tensor in buffers.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, tensor)
    return module.eval()
