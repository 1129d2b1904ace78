"""LoRA adapters of a pipeline, read by diffusers itself: every format that it knows, for every component that it adapts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import LowRankDelta
from qeff_framework.diffusion.folder import components_with_weights, with_components
from qeff_framework.errors import CheckpointError, InputError, UnsupportedModelError
from qeff_framework.thread_quiet import muted_loggers

if TYPE_CHECKING:
    import torch

#: Of the adapter in the pipeline without weights that it is loaded into.
_NAME: Final = "adapter"
_MERGE: Final = "merge it: pipe.load_lora_weights(...), pipe.fuse_lora(), pipe.unload_lora_weights()"


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
    from qeff_framework.seam.isolation import exporting
    from qeff_framework.seam.weightless import weightless_copy

    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise UnsupportedModelError(f"diffusers loads no LoRA adapters into {kind}")
    _require_peft()
    told = os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else "the adapter"
    with exporting(), muted_loggers("diffusers", "peft", "transformers"):
        components = {name: weightless_copy(each) for name, each in components_with_weights(pipeline).items()}
        before = {name: _parameters(each) for name, each in components.items()}
        scratch = with_components(pipeline, components)
        given = dict(weights) if isinstance(weights, Mapping) else told
        try:
            scratch.load_lora_weights(given, adapter_name=_NAME, **more)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{told} is no LoRA adapter that diffusers can load into {kind}: {error}") from error
        factors = {name: _factors(each, before[name], told) for name, each in components.items()}
    found = {name: each for name, each in factors.items() if each}
    if not found:
        raise CheckpointError(
            f"{told} adds nothing to {', '.join(components)} of {kind}: it is for another architecture; load it into the "
            "pipeline that it was trained for"
        )
    return PipelineAdapter(factors=found)


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


def _factors(
    module: torch.nn.Module, before: Mapping[str, tuple[torch.Tensor, int]], told: str
) -> dict[str, LowRankDelta]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    now = _parameters(module)
    changed = [
        name
        for name, (each, version) in before.items()
        if name not in now or now[name][0] is not each or now[name][1] != version
    ]
    if changed:
        raise CheckpointError(f"{told} replaces {changed[0]}, and sums of low rank alone can be switched; {_MERGE}")
    return {f"{path}.weight": _delta(layer, path, told) for path, layer in layers.items()}


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
    shape = tuple(layer.get_base_layer().weight.shape)
    if (up.shape[0], *down.shape[1:]) != shape:
        raise CheckpointError(
            f"{told} adds {[up.shape[0], *down.shape[1:]]} to {path}, which is {list(shape)}: it is for another architecture, or "
            f"other sizes of this one; load it into the pipeline that it was trained for"
        )
    return LowRankDelta(down=down.numpy(), up=(up * float(layer.scaling[_NAME])).numpy())
