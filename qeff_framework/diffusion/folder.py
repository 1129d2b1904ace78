"""A pipeline without weights as a folder: configs, schedulers, tokenizers, and what else its host part needs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qeff_framework.diffusion.calls import LIBRARIES, library_class
from qeff_framework.diffusion.components import Handler, hand_over, read_on_demand, set_numbers, without_weights
from qeff_framework.errors import ArtifactCorruptError, InputError, UnsupportedModelError
from qeff_framework.thread_quiet import heard_once, muted_loggers

INDEX, NUMBERS, NETWORKS = "pipeline.json", "numbers.safetensors", "networks.json"


def components_with_weights(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The torch modules among the components, by name."""
    return {name: each for name, each in pipeline.components.items() if isinstance(each, torch.nn.Module)}


def schedulers_of(pipeline: Any) -> dict[str, Any]:
    """The schedulers among the components, by name."""
    from diffusers import SchedulerMixin

    return {name: each for name, each in pipeline.components.items() if isinstance(each, SchedulerMixin)}


def further_arguments(pipeline: Any) -> dict[str, Any]:
    """What the class of the pipeline was made with beside its components: numbers, switches, lists of these."""
    taken = inspect.signature(type(pipeline).__init__).parameters
    config = dict(pipeline.config)
    return {
        name: config[name]
        for name in taken
        if name in config and name not in pipeline.components and not _names_component(config[name])
    }


def _names_component(value: Any) -> bool:
    """Whether a config has a component there: its library and its class."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(each, (str, type(None))) for each in value)
    )


def with_components(pipeline: Any, replaced: Mapping[str, Any]) -> Any:
    """Another pipeline of the class, with some components replaced."""
    # What its class warns about was told when the pipeline was made.
    with muted_loggers("diffusers"):
        return type(pipeline)(**{**pipeline.components, **replaced}, **further_arguments(pipeline))


def save_without_weights(
    pipeline: Any, directory: Path, host_weights: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Writes `directory`. `host_weights`: those of each component that the pipeline's own code computes with."""
    from safetensors.torch import save_file

    components: dict[str, Any] = {}
    directory.mkdir(parents=True)
    for name, component in pipeline.components.items():
        if component is None:
            components[name] = None
            continue
        components[name] = _name_of(component)
        place = directory / name
        if not isinstance(component, torch.nn.Module):
            component.save_pretrained(place)
            continue
        place.mkdir()
        _save_config(component, place)
        numbers = {**dict(component.named_buffers()), **host_weights.get(name, {})}
        if numbers:
            save_file({key: value.detach().clone().contiguous() for key, value in numbers.items()}, place / NUMBERS)
    index = {"class": _name_of(pipeline), "components": components, "arguments": further_arguments(pipeline)}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def networks_of(component: Any) -> list[torch.nn.Module]:
    """The networks of a component that is nothing but several of one kind, such as several ControlNets."""
    networks = getattr(component, "nets", None)
    return [*networks] if isinstance(networks, torch.nn.ModuleList) and not hasattr(component, "config") else []


def _save_config(component: Any, place: Path) -> None:
    if networks := networks_of(component):
        (place / NETWORKS).write_text(json.dumps([_name_of(each) for each in networks]) + "\n", encoding="utf-8")
        for number, network in enumerate(networks):
            _save_config(network, place / str(number))
        return
    save = component.save_config if hasattr(component, "save_config") else component.config.save_pretrained
    save(place)


def load_with_handler(directory: Path, handler: Handler) -> Any:
    """The pipeline of the folder; `handler` answers the calls of its components that have weights."""
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        parts = dict(index["components"])
        made = library_class(index["class"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError(f"{directory / INDEX} cannot be read: {error}; build the artifact again") from error
    components = {
        name: None if kind is None else _loaded(library_class(kind), directory / name, name, handler)
        for name, kind in parts.items()
    }
    # A process that has compiled the pipeline has told what its class warns about.
    with heard_once("diffusers"):
        return made(**components, **index["arguments"])


def _loaded(kind: Any, place: Path, name: str, handler: Handler) -> Any:
    from safetensors.torch import load_file

    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(place)
    numbers = load_file(place / NUMBERS) if (place / NUMBERS).is_file() else {}

    module = read_on_demand(without_weights(partial(_made, kind, place), {}), partial(_refuse_reading, name))
    set_numbers(module, numbers)
    return hand_over(module, name, handler)


def _made(kind: Any, place: Path) -> torch.nn.Module:
    module: torch.nn.Module
    if (place / NETWORKS).is_file():
        kinds = json.loads((place / NETWORKS).read_text(encoding="utf-8"))
        module = kind([_made(library_class(each), place / str(number)) for number, each in enumerate(kinds)])
    elif hasattr(kind, "load_config"):
        module = kind.from_config(kind.load_config(place))
    else:
        module = kind(kind.config_class.from_pretrained(place))
    return module


def _refuse_reading(component: str, weight: str) -> torch.Tensor:
    raise InputError(
        f"the pipeline computes with {component}.{weight} itself, outside of a call of its {component}, which it did not in the "
        "run that the artifact was compiled for; compile it with what this call adds to that run: compile(call={...})"
    )


def _name_of(value: Any) -> str:
    """The class as an artifact names it. Raises `UnsupportedModelError` for one of another library."""
    kind = type(value)
    if kind.__module__.partition(".")[0] not in LIBRARIES:
        raise UnsupportedModelError(
            f"{kind.__module__}.{kind.__qualname__} is no class of {' or '.join(LIBRARIES)}: an artifact could not load it"
        )
    return f"{kind.__module__}:{kind.__qualname__}"
