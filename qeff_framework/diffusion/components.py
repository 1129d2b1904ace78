"""Components of a pipeline whose code is somebody else's: of the recorder, or of programs.

A component keeps its class and its structure, which pipelines look at (``unet.config.in_channels``), and has no weights: its
parameters are read when somebody asks for their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from qeff_framework.diffusion.first_block import KeptBlocks
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor

#: ``(component, method, the method itself, positional arguments, keywords) -> result``.
Handler = Callable[[str, str, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]
#: What a pipeline calls a component for. Everything else that it asks is answered by the structure.
METHODS = ("forward", "decode", "encode")
#: Parts of a component that a message names.
_NAMED = 3


def hand_over(component: torch.nn.Module, name: str, handler: Handler) -> torch.nn.Module:
    """Lets `handler` answer the calls of `component`, which is changed for good."""
    own = type(component)
    replaced = {
        method: _handed(name, method, getattr(own, method), handler) for method in METHODS if hasattr(own, method)
    }
    if hasattr(own, "generate"):
        replaced["generate"] = _refused_writing(name)
    if hasattr(own, "cache_context"):
        replaced |= {"cache_context": _cache_context, "_reset_stateful_cache": reset_kept_blocks}
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    component.__class__ = type(own.__name__, (own,), {**replaced, **names})
    return component


def _handed(name: str, method: str, function: Callable[..., Any], handler: Handler) -> Callable[..., Any]:
    def handed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return handler(name, method, function.__get__(self), args, kwargs)

    return handed


def _refused_writing(name: str) -> Callable[..., Any]:
    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        del self, args, kwargs
        raise UnsupportedModelError(
            f"the pipeline lets its {name} write a text (generate()), token by token, for which no program of a pipeline keeps "
            "keys and values; leave out the argument of the call that asks for it, where there is one"
        )

    return refused


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


def read_on_demand(component: torch.nn.Module, read: Callable[[str], torch.Tensor]) -> torch.nn.Module:
    """Makes `read` answer, by its name, for each parameter whose numbers the pipeline's own code takes."""
    for path, part in component.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            full = f"{path}.{name}" if path else name
            computed = ComputedTensor(
                shape=tuple(parameter.shape), dtype=parameter.dtype, compute=partial(_detached, read, full)
            )
            setattr(part, name, torch.nn.Parameter(DeferredTensor.of_computed(computed), requires_grad=False))
    return component


def _detached(read: Callable[[str], torch.Tensor], name: str) -> torch.Tensor:
    return read(name).detach()


def structure(component: torch.nn.Module) -> dict[str, Any]:
    """What decides about what the parts of a component compute, beside their weights: their classes, settings and processors."""
    return {path: (type(part), {**_settings(part), **_hooks(part)}) for path, part in component.named_modules()}


def _settings(part: torch.nn.Module) -> dict[str, Any]:
    # What is switched off again leaves a None where there was nothing.
    settings = {name: _setting(value) for name, value in vars(part).items() if not name.startswith("_")}
    return {name: value for name, value in settings.items() if value is not None}


def _hooks(part: torch.nn.Module) -> dict[str, int]:
    """How many functions change what a part takes or returns. Those of Transformers collect outputs, and stay."""
    hooks = [*vars(part)["_forward_hooks"].values(), *vars(part)["_forward_pre_hooks"].values()]
    count = sum(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)
    return {"forward hooks": count} if count else {}


def _setting(value: Any) -> Any:
    """Objects are told by their class: a pipeline may put another attention processor in place of one."""
    if isinstance(value, (list, tuple)):
        return [_setting(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value)


def facts_of(component: Any) -> dict[str, Any]:
    """What tells whether somebody has changed a component since, by the place where; no numbers are read."""
    facts: dict[str, Any] = {"all of it": id(component)}
    if not isinstance(component, torch.nn.Module):
        return {**facts, "its tokens": len(component) if hasattr(component, "__len__") else 0}
    for path, (kind, settings) in structure(component).items():
        # Hooks that move a component between devices stand in the place of its method.
        facts[path or "its settings"] = kind, {name: value for name, value in settings.items() if name != "forward"}
    for path, weight in component.named_parameters():
        facts[path] = id(weight), weight._version, weight.dtype  # noqa: SLF001 - torch has no public name for it
    return facts


def changed_facts(before: Mapping[str, Mapping[str, Any]], components: Any) -> tuple[str, str] | None:
    """The first component that differs from its `facts_of` of before, and the place where; `None` where none does.

    `before`: facts by the component's name, which is also its attribute of `components`.
    """
    for name, facts in before.items():
        now = facts_of(getattr(components, name))
        changed = [place for place in {**facts, **now} if facts.get(place) != now.get(place)]
        if changed:
            return name, changed[0]
    return None


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two of `structure`, for a message; "" for nothing."""
    changed = [name for path in {**before, **now} for name in _changed(path, before.get(path), now.get(path))]
    some = ", ".join(changed[:_NAMED])
    return f"{some}, ..." if len(changed) > _NAMED else some


def _changed(path: str, before: Any, now: Any) -> list[str]:
    if before == now:
        return []
    if before is None or now is None or before[0] is not now[0]:
        return [path or "its class"]
    names = {**before[1], **now[1]}
    differ = [name for name in names if before[1].get(name, Ellipsis) != now[1].get(name, Ellipsis)]
    return [f"{path}.{name}" if path else name for name in differ]


def without_weights(build: Callable[[], torch.nn.Module], numbers: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """What `build` returns, with parameters that were never computed, but for these parameters and buffers."""
    from accelerate import init_empty_weights

    from qeff_framework.seam.isolation import exporting

    # Some draw their first weights themselves, from torch's own generator, which a caller may have seeded for a picture.
    with exporting(), torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        module = build()
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty(
                parameter.shape, dtype=torch.float32 if parameter.is_floating_point() else parameter.dtype
            )
            setattr(part, name, torch.nn.Parameter(empty, requires_grad=False))
    set_numbers(module, numbers)
    return module.eval()


def set_numbers(module: torch.nn.Module, numbers: Mapping[str, torch.Tensor]) -> None:
    """Sets parameters and buffers by their names."""
    for name, tensor in numbers.items():
        owner, _, attribute = name.rpartition(".")
        part = module.get_submodule(owner)
        is_parameter = attribute in dict(part.named_parameters(recurse=False))
        setattr(part, attribute, torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
