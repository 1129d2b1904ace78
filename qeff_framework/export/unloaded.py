"""Weights that a checkpoint did not hold: a graph that reads one computes with random numbers, and is refused.

A module may have weights that its graph has no use for, such as the pooler of an encoder whose hidden states are asked for.
Only the finished graph tells.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
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
#: Those of them that the translated graph read before it was simplified.
_translated: ContextVar[set[str] | None] = ContextVar("translated", default=None)


@contextmanager
def tracking_unloaded(names: AbstractSet[str]) -> Iterator[None]:
    """While the body makes a graph, `placeholders` stands for the states of these names."""
    tokens = _unloaded.set(names), _translated.set(set())
    try:
        yield
    finally:
        _unloaded.reset(tokens[0])
        _translated.reset(tokens[1])


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


def note_translated(model: onnx_ir.Model) -> None:
    """Notes which tracked states a translated `model` reads.

    Simplifying may compute a constant of several, such as a convolution with its batch norm, and the names are gone.
    """
    found = _translated.get()
    if found is not None:
        found |= _unloaded.get() & {name for name, _ in _used(model)}


def require_loaded(module: torch.nn.Module, *names: str) -> None:
    """Raises `CheckpointError` for a state of `module` whose number an export reads, and which the checkpoint did not hold."""
    absent = sorted(_unloaded.get() & {*names})
    if absent:
        raise _made_up(module, absent)


def refuse_unloaded(model: onnx_ir.Model, module: torch.nn.Module, names: AbstractSet[str]) -> None:
    """Raises `CheckpointError` if `model` reads a parameter or buffer of `module` among `names`.

    Inside of `tracking_unloaded`, also if it holds a constant that was computed of one.
    """
    if not names:
        return
    from qeff_framework.seam.deferred import memory_of

    states = _states(module)
    # A tensor that the module has under two names stands in the graph under one of them.
    twins = {memory_of(states[name]): name for name in names if name in states}
    read = sorted({name if name in names else _twin(states.get(name), twins) for name, _ in _used(model)} - {""})
    folded = (_translated.get() or set()) - {*model.graph.initializers}
    if not read and folded and any(_holds_nan(value) for name, value in _used(model) if name not in states):
        read = sorted(folded)
    if read:
        raise _made_up(module, read)


def _made_up(module: torch.nn.Module, names: Sequence[str]) -> CheckpointError:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return CheckpointError(
        f"the checkpoint of {type(module).__name__} holds no {', '.join(names[:_TOLD])}{more}, and the graph would "
        "compute with made-up numbers; download or save the checkpoint again, or choose the class that it was saved from"
    )


def _used(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.Value]]:
    initializers = model.graph.initializers.items()
    return ((name, value) for name, value in initializers if value.uses() or value.is_graph_output())


def _holds_nan(value: onnx_ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point():
        return False
    numbers = tensor.numpy()
    return bool((numbers != numbers).any())


def _twin(state: torch.Tensor | None, twins: Mapping[Hashable, str]) -> str:
    from qeff_framework.seam.deferred import memory_of

    return "" if state is None or not state.numel() else twins.get(memory_of(state), "")


def _states(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by all their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
