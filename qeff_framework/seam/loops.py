"""Layers with a recurrent state, token by token.

A recurrence is computed in Transformers by two pieces of code: a parallel scan over a whole prompt and an update for one more
token. The second one is all that a model needs, and the only one whose states padding can leave as they were. So the module
that owns a recurrent state is traced for one token, and the graph runs it in an ONNX ``Scan`` over the tokens of the step; the
rest of the model sees all tokens at once.

Which modules these are, and which of their arguments have an axis of tokens, is found out in the probe runs: the cache tells
which modules are running when a recurrent state is asked for, and two runs of unequal length tell the axes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch.utils import _pytree as pytree

from qeff_framework.dialect.names import DOMAIN, VERSION
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.cache import SeamCache, select_rows
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.scope import Scope, Step, current_scope, forward_scope
from qeff_framework.seam.states import StateId, StateShape

#: Stands in the traced graph where the ``Scan`` will stand.
LOOP_OP: Final = "TokenLoop"


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """What an argument, or a part of one, is to the loop."""

    kind: Literal["tokens", "same", "count", "cache", "constant"]
    #: Of ``"tokens"``: where the tokens lie.
    axis: int = 0
    #: Shape in the probe run, of tensors.
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    #: Of ``"constant"``.
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class LoopSite:
    """One module that runs token by token."""

    #: Dotted name in the model.
    name: str
    states: tuple[StateShape, ...]
    inputs: tuple[Leaf, ...]
    input_tree: pytree.TreeSpec
    outputs: tuple[Leaf, ...]
    output_tree: pytree.TreeSpec


@dataclass
class CallRecord:
    """The arguments and the result of one call, flattened."""

    inputs: list[Any]
    input_tree: pytree.TreeSpec
    outputs: list[Any] = field(default_factory=list)
    output_tree: pytree.TreeSpec | None = None


@contextlib.contextmanager
def recorded_calls(model: torch.nn.Module, names: Sequence[str]) -> Iterator[dict[str, CallRecord]]:
    """Records the calls of the named modules while the context lasts. Each may be called once."""
    calls: dict[str, CallRecord] = {}

    def recording(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if name in calls:
                raise UnsupportedModelError(f"{name} keeps a recurrent state and runs more than once in a step")
            calls[name] = call = CallRecord(*pytree.tree_flatten((args, kwargs)))
            result = forward(*args, **kwargs)
            call.outputs, call.output_tree = pytree.tree_flatten(result)
            return result

        return wrapped

    with replaced_forwards(model, dict.fromkeys(names, recording)):
        yield calls


def loop_site(name: str, states: Sequence[StateShape], short: CallRecord, long: CallRecord, batch: int) -> LoopSite:
    """What two calls of unequal length tell about a module."""
    if short.input_tree != long.input_tree or short.output_tree != long.output_tree or short.output_tree is None:
        raise UnsupportedModelError(f"{name} keeps a recurrent state and is called in different ways")
    for state in states:
        if state.id.kind == "kv":
            raise UnsupportedModelError(f"{name} keeps keys and values together with a recurrent state")
    outputs = tuple(_leaf(name, a, b) for a, b in zip(short.outputs, long.outputs, strict=True))
    for leaf in outputs:
        if leaf.kind not in ("tokens", "constant") or (leaf.kind == "tokens" and leaf.shape[0] != batch):
            raise UnsupportedModelError(f"{name} keeps a recurrent state and returns something that is not per token")
    return LoopSite(
        name=name,
        states=tuple(states),
        inputs=tuple(_leaf(name, a, b) for a, b in zip(short.inputs, long.inputs, strict=True)),
        input_tree=short.input_tree,
        outputs=outputs,
        output_tree=short.output_tree,
    )


def _leaf(name: str, short: Any, long: Any) -> Leaf:
    if isinstance(short, SeamCache):
        return Leaf(kind="cache")
    if isinstance(short, torch.Tensor):
        axes = [axis for axis, (a, b) in enumerate(zip(short.shape, long.shape, strict=True)) if a != b]
        if len(axes) > 1:
            raise UnsupportedModelError(
                f"{name} keeps a recurrent state and takes a tensor with two axes of tokens, {tuple(short.shape)}"
            )
        kind: Literal["tokens", "same"] = "tokens" if axes else "same"
        return Leaf(kind=kind, axis=axes[0] if axes else 0, shape=tuple(short.shape), dtype=short.dtype)
    if type(short) is int and short != long:
        return Leaf(kind="count")
    return Leaf(kind="constant", value=short)


@contextlib.contextmanager
def looping(
    model: torch.nn.Module, sites: Sequence[LoopSite], states: Mapping[StateId, torch.Tensor]
) -> Iterator[dict[StateId, torch.Tensor]]:
    """Lets the modules of `sites` emit one loop each; yields their new states, complete after the forward pass."""
    new_states: dict[StateId, torch.Tensor] = {}

    def emitting(number: int, site: LoopSite) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            held = [states[state.id] for state in site.states]
            results, kept = _emit(number, site, pytree.tree_flatten((args, kwargs))[0], held)
            new_states.update({state.id: tensor for state, tensor in zip(site.states, kept, strict=True)})
            return pytree.tree_unflatten(results, site.output_tree)

        return forward

    by_name = {site.name: emitting(number, site) for number, site in enumerate(sites)}
    with replaced_forwards(model, {name: lambda name, _: by_name[name] for name in by_name}):
        yield new_states


def _emit(
    number: int, site: LoopSite, leaves: Sequence[Any], states: Sequence[torch.Tensor]
) -> tuple[list[Any], list[torch.Tensor]]:
    step = current_scope().step
    assert step is not None  # noqa: S101  (loops exist in graphs with positions only)
    batch, seq = step.position_ids.shape
    tokens = [leaf for leaf, known in zip(leaves, site.inputs, strict=True) if known.kind == "tokens"]
    same = [leaf for leaf, known in zip(leaves, site.inputs, strict=True) if known.kind == "same"]
    shapes: list[list[Any]] = [list(state.shape) for state in states]
    dtypes = [state.dtype for state in states]
    for leaf in site.outputs:
        if leaf.kind == "tokens":
            shapes.append([batch, *leaf.shape[1 : leaf.axis], seq, *leaf.shape[leaf.axis + 1 :]])
            dtypes.append(leaf.dtype)
    values = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{LOOP_OP}",
        [*states, step.position_ids, *tokens, *same],
        {"site": number},
        dtypes=dtypes,
        shapes=shapes,
        version=VERSION,
    )
    results = iter(values[len(states) :])
    outputs = [next(results) if leaf.kind == "tokens" else leaf.value for leaf in site.outputs]
    return outputs, list(values[: len(states)])


class TokenStep(torch.nn.Module):
    """The module of a site for one token of each row: the body of the loop."""

    def __init__(self, model: torch.nn.Module, site: LoopSite) -> None:
        super().__init__()
        self.model = model.get_submodule(site.name)
        self.site = site

    def forward(
        self,
        states: list[torch.Tensor],
        positions: torch.Tensor,
        tokens: list[torch.Tensor],
        same: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Takes states, ``positions [B]`` and the token's slices; returns the new states and the slices of the results."""
        site, remaining_tokens, remaining_same = self.site, iter(tokens), iter(same)
        before = [select_rows(positions != 0, state, torch.zeros_like(state)) for state in states]
        cache = SeamCache(1, {shape.id: state.clone() for shape, state in zip(site.states, before, strict=True)})
        leaves: list[Any] = []
        for leaf in site.inputs:
            if leaf.kind == "tokens":
                leaves.append(next(remaining_tokens).unsqueeze(leaf.axis))
            elif leaf.kind == "same":
                leaves.append(next(remaining_same))
            else:
                leaves.append({"cache": cache, "count": 1, "constant": leaf.value}[leaf.kind])
        args, kwargs = pytree.tree_unflatten(leaves, site.input_tree)
        step = Step(position_ids=positions.unsqueeze(1), kv_positions=torch.arange(1), looped=True)
        with forward_scope(Scope(masks=MaskPlan(), step=step)):
            results = pytree.tree_flatten(self.model(*args, **kwargs))[0]
        slices = [
            result.squeeze(leaf.axis)
            for result, leaf in zip(results, site.outputs, strict=True)
            if leaf.kind == "tokens"
        ]
        is_token = positions >= 0
        kept = [
            select_rows(is_token, cache.states[shape.id], state)
            for shape, state in zip(site.states, states, strict=True)
        ]
        return *kept, *slices

    def example(self, batch: int) -> tuple[Any, ...]:
        """Arguments for the trace."""
        inputs = self.site.inputs
        return (
            [state.zeros(batch, 1) for state in self.site.states],
            torch.ones(batch, dtype=torch.int64),
            [_zeros(leaf, without_axis=True) for leaf in inputs if leaf.kind == "tokens"],
            [_zeros(leaf, without_axis=False) for leaf in inputs if leaf.kind == "same"],
        )


def _zeros(leaf: Leaf, *, without_axis: bool) -> torch.Tensor:
    shape = leaf.shape[: leaf.axis] + leaf.shape[leaf.axis + 1 :] if without_axis else leaf.shape
    return torch.zeros(shape, dtype=leaf.dtype)


@contextlib.contextmanager
def replaced_forwards(
    model: torch.nn.Module, makers: Mapping[str, Callable[[str, Callable[..., Any]], Callable[..., Any]]]
) -> Iterator[None]:
    """While the body runs, the named modules have the forwards that the makers make of their names and own forwards."""
    modules = {name: model.get_submodule(name) for name in makers}
    # The seam itself may have given a module a forward of its own.
    replaced = {name: vars(module).get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = makers[name](name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            del module.forward
            if (before := replaced[name]) is not None:
                module.forward = before
