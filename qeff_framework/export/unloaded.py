"""Weights that a checkpoint did not hold: a graph that reads one computes with random numbers, and is refused.

A module may have weights that its graph has no use for, such as the pooler of an encoder whose hidden states are asked for.
Only the finished graph tells.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from qeff_framework.errors import CheckpointError

if TYPE_CHECKING:
    import onnx_ir
    import torch

_TOLD = 6
_unloaded: ContextVar[AbstractSet[str]] = ContextVar("unloaded", default=frozenset())


@contextmanager
def tracking_unloaded(names: AbstractSet[str]) -> Iterator[None]:
    """While the body makes a graph, `placeholders` stands for the states of these names."""
    token = _unloaded.set(names)
    try:
        yield
    finally:
        _unloaded.reset(token)


def placeholders(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """NaN in the shape of each state of `module` that is tracked, with the memory of one row.

    The optimiser drops what changes nothing, such as a bias of zeros, which is what a missing bias is initialised to. It drops no
    NaN, so that the finished graph shows everything it reads.
    """
    import torch

    names = _unloaded.get()
    return {
        name: torch.full(state.shape[-1:], torch.nan, dtype=state.dtype).expand(state.shape)
        for name, state in (_states(module).items() if names else ())
        if name in names and state.is_floating_point()
    }


def refuse_unloaded(model: onnx_ir.Model, module: torch.nn.Module, names: AbstractSet[str]) -> None:
    """Raises `CheckpointError` if `model` reads a parameter or buffer of `module` among `names`."""
    if not names:
        return
    from qeff_framework.seam.deferred import memory_of

    states = _states(module)
    # A tensor that the module has under two names stands in the graph under one of them.
    twins = {memory_of(states[name]): name for name in names if name in states}
    used = [name for name, value in model.graph.initializers.items() if value.uses() or value.is_graph_output()]
    read = sorted({name if name in names else _twin(states.get(name), twins) for name in used} - {""})
    if read:
        more = f" and {len(read) - _TOLD} more" if len(read) > _TOLD else ""
        raise CheckpointError(
            f"the checkpoint of {type(module).__name__} holds no {', '.join(read[:_TOLD])}{more}, and the graph would "
            "compute with made-up numbers; download or save the checkpoint again, or choose the class that it was saved from"
        )


def _twin(state: torch.Tensor | None, twins: Mapping[Hashable, str]) -> str:
    from qeff_framework.seam.deferred import memory_of

    return "" if state is None or not state.numel() else twins.get(memory_of(state), "")


def _states(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by all their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
