"""Calls of a pipeline's components: their arguments and results as JSON and tensors.

A description holds everything but the numbers in tensors, so that equal descriptions are calls of one graph.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch

from qeff_framework.diffusion.arguments import TIME_STEPS
from qeff_framework.errors import ArtifactError, UnsupportedModelError
from qeff_framework.seam.host_contents import ContentsOnTheHost

#: Packages whose classes a description may name: an artifact may come from somebody else.
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a component, without the numbers of its tensors."""

    #: Name of the component in its pipeline: ``"unet"``.
    component: str
    #: ``"forward"``, ``"decode"`` or ``"encode"``.
    method: str
    #: Of the arguments by name, see `described`.
    arguments: Mapping[str, Any]
    #: What of the call a graph computes, see `diffusion.first_block`; "" for all of it.
    part: str = ""
    #: What a part takes beside the arguments, described as these.
    given: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the metadata of an export."""
        told = {"component": self.component, "method": self.method, "arguments": self.arguments}
        return {**told, "part": self.part, "given": self.given} if self.part else told

    @property
    def inputs(self) -> dict[str, Any]:
        """Of the graph."""
        return {**self.arguments, **self.given}

    @property
    def told(self) -> str:
        """For messages: ``unet(sample [2, 4, 8, 8], timestep [])``."""
        tensors = ", ".join(f"{path} {spec['shape']}" for path, spec in tensor_specs(self.arguments))
        method = "" if self.method == "forward" else f".{self.method}"
        return f"{self.component}{method}({tensors})"


def call_of(
    component: str, method: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Call, list[torch.Tensor]]:
    """The call and its tensors. `function` is what is called: its signature gives positional arguments their names.

    Raises:
        UnsupportedModelError: an argument that has no form as JSON and tensors.
    """
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            raise UnsupportedModelError(f"its {component}.{method} takes any number of arguments")
        else:
            named[name] = value
    tensors: list[torch.Tensor] = []
    arguments = {
        name: _argument(value, tensors, f"{component}.{method}({name}=...)") for name, value in sorted(named.items())
    }
    return Call(component=component, method=method, arguments=arguments), tensors


def with_real_times(call: Call, tensors: Sequence[torch.Tensor]) -> tuple[Call, list[torch.Tensor]]:
    """The call with time steps that may lie between whole numbers: of schedulers some count them and others do not."""
    paths = [path for path, _ in tensor_specs(call.arguments)]
    whole = {path for path, each in zip(paths, tensors, strict=True) if path in TIME_STEPS and _is_whole(each)}
    arguments = {
        name: {"tensor": {**item["tensor"], "dtype": "float32"}} if name in whole else item
        for name, item in call.arguments.items()
    }
    real = [each.float() if path in whole else each for path, each in zip(paths, tensors, strict=True)]
    return replace(call, arguments=arguments), real


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _argument(value: Any, tensors: list[torch.Tensor], place: str) -> Any:
    # Who draws random numbers gets them from the host: a graph that would draw some is refused when it is made.
    description = {"value": None} if _is_generator(value) else described(value, tensors, is_whole=True)
    if description is None:
        raise UnsupportedModelError(f"{place} is a {type(value).__name__}, which no graph can be made for")
    return description


def _is_generator(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(item, torch.Generator) for item in items)


def described(value: Any, tensors: list[torch.Tensor], *, is_whole: bool = False) -> dict[str, Any] | None:
    """JSON for `value`; its tensors are appended to `tensors`. `None` for an object of another kind.

    What no graph returns, such as a cache, is left out of an output class: `None` stands there; not if it must be `is_whole`.
    """

    def part(item: Any) -> dict[str, Any] | None:
        return described(item, tensors, is_whole=is_whole)

    if isinstance(value, torch.Tensor):
        # No program takes complex numbers: they are given as pairs of real ones, along an axis at the end.
        kind, stored = ("complex", torch.view_as_real(value)) if value.is_complex() else ("tensor", value)
        tensors.append(stored)
        return {
            kind: {"shape": [int(size) for size in stored.shape], "dtype": str(stored.dtype).removeprefix("torch.")}
        }
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if is_dataclass(type(value)) and isinstance(value, Mapping):
        found = {name: part(item) for name, item in value.items() if item is not None}
        if is_whole and None in found.values():
            return None
        return _object(value, {name: item for name, item in found.items() if item is not None})
    if isinstance(value, Mapping):
        return _mapping(value, part)
    if isinstance(value, (list, tuple)):
        parts = [part(item) for item in value]
        return None if None in parts else {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(getattr(value, "parameters", None), torch.Tensor):
        # The distribution that an autoencoder encodes an image to.
        settings = {"deterministic": True} if getattr(value, "deterministic", False) else {}
        return _object(value, {name: part(item) for name, item in {"parameters": value.parameters, **settings}.items()})
    return None


def _mapping(value: Mapping[Any, Any], part: Callable[[Any], dict[str, Any] | None]) -> dict[str, Any] | None:
    """JSON has no keys but texts; others, such as the numbers of blocks, are kept as pairs."""
    if not all(isinstance(name, (str, int)) for name in value) or len({str(name) for name in value}) < len(value):
        return None
    items = [(name, part(item)) for name, item in value.items()]
    if any(item is None for _, item in items):
        return None
    if all(isinstance(name, str) for name, _ in items):
        return {"dict": dict(items)}
    return {"pairs": [[name, item] for name, item in items]}


def _object(value: object, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": dict(fields)}


def rebuilt(description: Mapping[str, Any], tensors: Iterator[torch.Tensor]) -> Any:
    """The value that was described, with other tensors."""
    ((kind, content),) = [item for item in description.items() if item[0] != "fields"]
    if kind == "tensor":
        return next(tensors)
    if kind == "complex":
        return torch.view_as_complex(next(tensors).contiguous())
    if kind == "value":
        return content
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "dict":
        return {name: rebuilt(item, tensors) for name, item in content.items()}
    if kind == "pairs":
        return {name: rebuilt(item, tensors) for name, item in content}
    if kind == "class":
        fields = {name: rebuilt(item, tensors) for name, item in description["fields"].items()}
        return library_class(content)(**fields)
    items = [rebuilt(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def library_class(name: str) -> Any:
    """The class ``"module:name"`` of diffusers or transformers."""
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] not in LIBRARIES:
        raise ArtifactError(f"the artifact names the class {name!r}, which is not of {' or '.join(LIBRARIES)}")
    return getattr(importlib.import_module(module), attribute)


def tensor_specs(arguments: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Path, shape and dtype of each tensor of a description of arguments, in order."""
    return [item for name, description in arguments.items() for item in _specs(name, description)]


def _specs(path: str, description: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "tensor" in description or "complex" in description:
        yield path, description.get("tensor") or description["complex"]
        return
    for kind in ("dict", "fields"):
        for name, item in description.get(kind, {}).items():
            yield from _specs(f"{path}.{name}" if path else name, item)
    for name, item in description.get("pairs", ()):
        yield from _specs(f"{path}.{name}" if path else str(name), item)
    for kind in ("list", "tuple"):
        for number, item in enumerate(description.get(kind, ())):
            yield from _specs(f"{path}.{number}" if path else str(number), item)


def example_tensors(arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """Ones of the described shapes."""
    return [torch.ones(spec["shape"], dtype=getattr(torch, spec["dtype"])) for _, spec in tensor_specs(arguments)]


class CallGraph(torch.nn.Module):
    """A component as a function of the tensors of a call; ``result`` describes what the last run returned."""

    def __init__(self, component: torch.nn.Module, call: Call) -> None:
        super().__init__()
        self.model = component
        self._call = call
        self.result: dict[str, Any] = {}
        self._contents = ContentsOnTheHost()

    @property
    def read_contents(self) -> str:
        """How the component has read the contents of a tensor on the host; "" where it has not."""
        return self._contents.read

    def forward(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the tensors of the result in the order of its description."""
        from qeff_framework.diffusion.first_block import run_part
        from qeff_framework.seam.plain_attention import PlainAttention
        from qeff_framework.seam.real_constants import ConstantsStayReal

        call, taken = self._call, iter(tensors)
        arguments = {name: rebuilt(item, taken) for name, item in call.arguments.items()}
        given = {name: rebuilt(item, taken) for name, item in call.given.items()}
        # Tables of positions depend on sizes alone. Masks that attention gets here must not become constants: hence the order.
        with PlainAttention(), ConstantsStayReal(), self._contents:
            if call.part:
                value = run_part(self.model, call.method, arguments, call.part, given)
            else:
                value = getattr(self.model, call.method)(**arguments)
        found: list[torch.Tensor] = []
        description = described(value, found)
        if description is None:
            raise UnsupportedModelError(f"{call.told} returns a {type(value).__name__}")
        self.result = description
        # A graph returns each tensor once.
        return tuple(
            tensor.clone() if any(tensor is other for other in found[:number]) else tensor
            for number, tensor in enumerate(found)
        )


class PipelineModules(torch.nn.Module):
    """The components of a pipeline that have weights."""

    def __init__(self, components: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        for name, component in components.items():
            self.add_module(name, component)
