"""LoRA adapters of a pipeline, read by diffusers itself: every format that it knows, for every component that it adapts."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import AdapterRoom, LowRankDelta
from qeff_framework.diffusion.folder import components_with_weights, with_components
from qeff_framework.errors import CheckpointError, InputError, OptionError, UnsupportedModelError
from qeff_framework.thread_quiet import muted_loggers

if TYPE_CHECKING:
    import torch

#: Of the adapter in the pipeline without weights that it is loaded into.
_NAME: Final = "adapter"
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MERGE: Final = "merge it: from_pretrained(PIPELINE, adapter=...)"


@dataclass(frozen=True, kw_only=True)
class PipelineAdapter:
    """What an adapter adds to the weights of each component: by the component's name and the weight's."""

    factors: Mapping[str, Mapping[str, LowRankDelta]]

    @property
    def rank(self) -> int:
        """The greatest one."""
        return max(int(delta.down.shape[0]) for deltas in self.factors.values() for delta in deltas.values())

    def digest(self, component: str) -> str:
        """SHA-256 of what it adds to a component."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.factors.get(component, {}).items()):
            for factor in (delta.down, delta.up):
                digest.update(f"{name}|{factor.shape}|".encode())
                digest.update(factor.tobytes())
        return digest.hexdigest()


def read_adapter(
    pipeline: Any, weights: str | os.PathLike[str] | Mapping[str, torch.Tensor], **more: Any
) -> PipelineAdapter:
    """Reads an adapter as ``pipeline.load_lora_weights(weights, **more)`` does; `pipeline` stays as it is.

    Raises:
        UnsupportedModelError: diffusers has no adapters for such a pipeline.
        CheckpointError: there is no such adapter, it is for another architecture, or it changes more than sums of low rank can.
        InputError: peft is not installed.
    """
    told = _told(weights)
    found = {
        name: _factors(module, before, told)
        for name, (module, before) in _adapted_copies(pipeline, weights, more).items()
    }
    return PipelineAdapter(factors=found)


def merge_adapter(
    pipeline: Any, weights: str | os.PathLike[str], load: Callable[[str], torch.nn.Module | None]
) -> list[str]:
    """Makes an adapter a part of the weights, as diffusers' ``fuse_lora`` does. Returns which components it changes.

    `load`: a component that `pipeline` has without its numbers, with them; `None` for another one.

    Raises:
        UnsupportedModelError: diffusers has no adapters for such a pipeline.
        CheckpointError: there is no such adapter, or it is for another architecture.
        InputError: peft is not installed.
    """
    told = _told(weights)
    names = [*_adapted_copies(pipeline, weights, {})]
    for name in names:
        loaded = load(name)
        if loaded is not None:
            pipeline.register_modules(**{name: loaded})
    with _quiet():
        try:
            pipeline.load_lora_weights(told, adapter_name=_NAME)
            pipeline.fuse_lora(components=names)
            pipeline.unload_lora_weights()
        except Exception as error:
            raise CheckpointError(
                f"{told} cannot be merged into {type(pipeline).__name__}: {_reason(error)}"
            ) from error
    return names


def adapter_rooms(adapters: Mapping[str, PipelineAdapter], *, slots: int, rank: int | None) -> dict[str, AdapterRoom]:
    """Room for `slots` adapters of `rank`, the largest of `adapters` by default, in each component that one of them changes.

    Raises:
        OptionError: one of `adapters` does not fit, or there is none, which would say for which layers there must be room.
    """
    if not adapters:
        raise OptionError(f"max_loras={slots}: load an adapter first, which says for which layers there must be room")
    weights: dict[str, set[str]] = {}
    for adapter in adapters.values():
        for component, deltas in adapter.factors.items():
            weights.setdefault(component, set()).update(deltas)
    most = rank or max(adapter.rank for adapter in adapters.values())
    rooms = {
        component: AdapterRoom(slots=slots, rank=most, weights=tuple(sorted(names)))
        for component, names in weights.items()
    }
    for number, (name, adapter) in enumerate(adapters.items(), start=1):
        check_room(name, adapter, rooms, count=number)
    return rooms


def check_room(name: str, adapter: PipelineAdapter, rooms: Mapping[str, AdapterRoom], *, count: int) -> None:
    """Raises `OptionError` where `adapter`, number `count` of those in `rooms`, does not fit."""
    room = next(iter(rooms.values()))
    known = {(component, weight) for component, each in rooms.items() for weight in each.weights}
    own = {(component, weight) for component, deltas in adapter.factors.items() for weight in deltas}
    problem = ""
    if count > room.slots:
        problem = f"is adapter number {count}; delete another one, or compile with max_loras={count}"
    elif adapter.rank > room.rank:
        problem = f"has the rank {adapter.rank}; compile with max_lora_rank={adapter.rank}"
    elif own - known:
        problem = f"adds to {' '.join(min(own - known))}; load an adapter for all layers before compile"
    if problem:
        raise OptionError(
            f"the programs have room for {room.slots} adapters of rank {room.rank} for {len(known)} weights, and '{name}' "
            f"{problem}"
        )


def _is_local(weights: str | os.PathLike[str]) -> bool:
    """Whether it is no id of the hub: ``owner/name``."""
    text = os.fspath(weights)
    return not isinstance(weights, str) or text.startswith((".", os.sep)) or Path(text).suffix in _SUFFIXES


def _quiet() -> AbstractContextManager[None]:
    """What is wrong is raised."""
    return muted_loggers("diffusers", "peft", "transformers", heard_from=logging.CRITICAL)


def _told(weights: str | os.PathLike[str] | Mapping[str, torch.Tensor]) -> str:
    return os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else "the adapter"


def _reason(error: Exception) -> str:
    """One line: of all layers that have another size the first."""
    text = str(error)
    other_size = re.search(r"size mismatch for .*", text)
    if other_size:
        return (
            f"it is for another architecture, or other sizes of this one ({other_size[0].rstrip('.')}); load it into the "
            "pipeline that it was trained for"
        )
    return (
        text.partition("\n")[0].strip()
        if isinstance(error, (OSError, ValueError))
        else f"{type(error).__name__}: {text}"
    )


def _adapted_copies(
    pipeline: Any, weights: str | os.PathLike[str] | Mapping[str, torch.Tensor], more: Mapping[str, Any]
) -> Mapping[str, tuple[torch.nn.Module, Mapping[str, tuple[torch.Tensor, int]]]]:
    """Weightless copies of the components that an adapter changes, with it, and their parameters before; see `_parameters`."""
    from qeff_framework.seam.isolation import exporting
    from qeff_framework.seam.weightless import weightless_copy

    kind, told = type(pipeline).__name__, _told(weights)
    if not hasattr(pipeline, "load_lora_weights"):
        raise UnsupportedModelError(f"diffusers loads no LoRA adapters into {kind}")
    _require_peft()
    if not isinstance(weights, Mapping) and _is_local(weights) and not Path(weights).exists():
        raise CheckpointError(f"{told} is no LoRA adapter: there is no such file or folder")
    with exporting(), _quiet():
        components = {name: weightless_copy(each) for name, each in components_with_weights(pipeline).items()}
        before = {name: _parameters(each) for name, each in components.items()}
        scratch = with_components(pipeline, components)
        given = dict(weights) if isinstance(weights, Mapping) else told
        try:
            scratch.load_lora_weights(given, adapter_name=_NAME, **more)
        except Exception as error:
            raise CheckpointError(
                f"{told} is no LoRA adapter that diffusers can load into {kind}: {_reason(error)}"
            ) from error
        found = {
            name: (each, before[name])
            for name, each in components.items()
            if _tuned(each) or _replaced(each, before[name])
        }
    if not found:
        raise CheckpointError(
            f"{told} adds nothing to {', '.join(components)} of {kind}: it is for another architecture; load it into the "
            "pipeline that it was trained for"
        )
    for module, _ in found.values():
        for path, layer in _tuned(module).items():
            _check_size(layer, path, told)
    return found


def _require_peft() -> None:
    import importlib.util

    if importlib.util.find_spec("peft") is None:
        raise InputError("LoRA adapters of pipelines are read with peft, which is not installed: pip install peft")


def _parameters(module: torch.nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """Each parameter by its name in the module without adapters, and how often it has been written to."""
    return {
        name.replace(".base_layer.", "."): (each, each._version)  # noqa: SLF001 - torch has no public name for it
        for name, each in module.named_parameters()
    }


def _replaced(module: torch.nn.Module, before: Mapping[str, tuple[torch.Tensor, int]]) -> list[str]:
    """The parameters that are other ones now, or were written to."""
    now = _parameters(module)
    return [
        name
        for name, (each, version) in before.items()
        if name not in now or now[name][0] is not each or now[name][1] != version
    ]


def _tuned(module: torch.nn.Module) -> dict[str, Any]:
    """The layers that have something of an adapter, by their paths."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {path: layer for path, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def _factors(
    module: torch.nn.Module, before: Mapping[str, tuple[torch.Tensor, int]], told: str
) -> dict[str, LowRankDelta]:
    changed = _replaced(module, before)
    if changed:
        raise CheckpointError(f"{told} replaces {changed[0]}, and sums of low rank alone can be switched; {_MERGE}")
    return {f"{path}.weight": _delta(layer, path, told) for path, layer in _tuned(module).items()}


def _check_size(layer: Any, path: str, told: str) -> None:
    """Raises `CheckpointError` for an adapter of a layer of another size, which diffusers loads and cannot run."""
    if _NAME not in getattr(layer, "lora_A", {}):
        return
    down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    shape = list(layer.get_base_layer().weight.shape)
    added = [up.shape[0], *down.shape[1:]]
    if added != shape or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{told} adds {added} to {path}, which is {shape}: it is for another architecture, or other sizes of this one; load "
            "it into the pipeline that it was trained for"
        )


def _delta(layer: Any, path: str, told: str) -> LowRankDelta:
    kinds = {
        f"{type(layer).__name__}, which is no LoRA of": _NAME not in getattr(layer, "lora_A", {}),
        "DoRA of": _NAME in getattr(layer, "lora_magnitude_vector", {}),
        "a bias of": bool(getattr(layer, "lora_bias", {}).get(_NAME)),
    }
    other = [kind for kind, found in kinds.items() if found]
    if other:
        raise CheckpointError(f"{told} is {other[0]} {path}, and sums of low rank alone can be switched; {_MERGE}")
    down, up = layer.lora_A[_NAME].weight.detach().float(), layer.lora_B[_NAME].weight.detach().float()
    return LowRankDelta(down=down.numpy(), up=(up * float(layer.scaling[_NAME])).numpy())
