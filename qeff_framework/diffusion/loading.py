"""A pipeline of diffusers in a folder: what it lacks or has too much is told before its weights are read."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import CheckpointError, InputError, UnsupportedModelError
from qeff_framework.thread_quiet import heard_once

if TYPE_CHECKING:
    import torch

    from qeff_framework.sources.pipeline_files import StoredComponent

#: Attention of components that no program has, by a part of their processors' names.
_PROCESSORS = {
    "IPAdapter": ("has an IP-Adapter", "call pipe.unload_ip_adapter()"),
    "Sliced": ("computes attention in slices", "call pipe.disable_attention_slicing(): the pictures are the same"),
}
#: What to do about a folder that is not complete.
_COMPLETE = "download it again, or pass the component"
#: Endings of files with weights, and the files of a tokenizer that hold no tokens of its own.
_WEIGHT_FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack", ".gguf")
_ABOUT_TOKENIZERS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}


def check_folder(place: Path, arguments: Mapping[str, Any]) -> None:
    """Refuses a folder that lacks a component or its files, or has a safety checker. What is unreadable is left to the loader."""
    try:
        index = json.loads((place / "model_index.json").read_text(encoding="utf-8"))
        named = {name: kind for name, kind in index.items() if isinstance(kind, list) and None not in kind}
    except (OSError, ValueError, AttributeError):
        return
    if "safety_checker" in named and "safety_checker" not in arguments:
        raise UnsupportedModelError(_safety_checker_of(index.get("_class_name", "the pipeline")))
    missing = [name for name in named if name not in arguments and not (place / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{place} lacks its {' and '.join(missing)}, which its model_index.json names: no such folder is there; {_COMPLETE}"
        )
    absent = [name for name in _needed_by(index.get("_class_name")) if name not in named and name not in arguments]
    if absent:
        raise CheckpointError(
            f"{place} lacks its {' and '.join(absent)}, without which {index['_class_name']} does not run: its model_index.json "
            f"names none; {_COMPLETE}"
        )
    for name, (library, kind) in named.items():
        if name not in arguments and (files := _missing_files(place / name, library, kind)):
            raise CheckpointError(f"{place} lacks its {name}: no {files} in {place / name}; {_COMPLETE}")


def _needed_by(kind: object) -> list[str]:
    """The components without which a pipeline of diffusers cannot be made, by the name of its class."""
    import diffusers

    named: object = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(named, type) and issubclass(named, diffusers.DiffusionPipeline)):
        return []
    found: Any = named  # untyped
    expected, _ = found._get_signature_keys(found)  # noqa: SLF001 - the library has no public name for it
    return sorted(set(expected) - set(found._optional_components))  # noqa: SLF001


def _missing_files(folder: Path, library: object, kind: object) -> str:
    """What a component's folder lacks; "" where it is complete, or a loader of its own decides."""
    import torch

    if library not in ("diffusers", "transformers") or not isinstance(kind, str):
        return ""
    files = {file.name for file in folder.iterdir()}
    if "Tokenizer" in kind:
        # Without any of them Transformers makes a tokenizer that knows no words.
        return "" if files - _ABOUT_TOKENIZERS else "file with tokens lies"
    found = getattr(importlib.import_module(library), kind, None)
    if isinstance(found, type) and issubclass(found, torch.nn.Module):
        return "" if any(name.endswith(_WEIGHT_FILES) for name in files) else "file with weights lies"
    return ""


def load_pipeline(place: str, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, StoredComponent]]:
    """The pipeline, and those of its components that need no reading."""
    from qeff_framework.diffusion.components import structure
    from qeff_framework.sources.quiet import quiet_diffusers

    with quiet_diffusers(), heard_once("diffusers"):
        from diffusers import DiffusionPipeline

        def load(given: Mapping[str, torch.nn.Module]) -> Any:
            try:
                return DiffusionPipeline.from_pretrained(place, **given, **arguments)
            except (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
                raise CheckpointError(f"{place} cannot be loaded as a pipeline of diffusers: {error}") from error

        stored, given = _components_in(Path(place), arguments)
        before = {name: structure(module) for name, module in given.items()}
        pipeline = load(given)
        # The ControlNet of Z-Image gets parts of the transformer: its own files are not all of it.
        changed = {name for name in given if structure(getattr(pipeline, name)) != before[name]}
        if changed:
            given = {name: module for name, module in given.items() if name not in changed}
            pipeline = load(given)
        return pipeline, {name: each for name, each in stored.items() if name in given}


def _components_in(
    place: Path, arguments: Mapping[str, Any]
) -> tuple[dict[str, StoredComponent], dict[str, torch.nn.Module]]:
    """The components of a folder that need no reading, and their modules, for the loader of diffusers."""
    from qeff_framework.sources.pipeline_files import DECIDED_BY_THE_LOADER, stored_components

    if not place.is_dir() or DECIDED_BY_THE_LOADER & set(arguments):
        return {}, {}
    found = {name: each for name, each in stored_components(place).items() if name not in arguments}
    modules = {name: each.without_numbers() for name, each in found.items()}
    made = {name: module for name, module in modules.items() if module is not None}
    return {name: found[name] for name in made}, made


def check_components(pipeline: Any) -> None:
    """Refuses what an artifact cannot carry, before any work."""
    kind = type(pipeline).__name__
    components: dict[str, Any] = pipeline.components
    if components.get("safety_checker") is not None:
        raise UnsupportedModelError(_safety_checker_of(kind))
    for name, part in components.items():
        processors = {type(each).__name__ for each in getattr(part, "attn_processors", {}).values()}
        for kind_of_them, (what, instead) in _PROCESSORS.items():
            if any(kind_of_them in each for each in processors):
                raise UnsupportedModelError(f"the {name} of {kind} {what}, which has no form as a program; {instead}")
    optional = set(pipeline._optional_components)  # noqa: SLF001 - the library has no public name for it
    # Of several text encoders some pipelines do without one, and say themselves if they do not.
    if sum(name.startswith("text_encoder") and each is not None for name, each in components.items()):
        several = sum(name.startswith("text_encoder") for name in components) > 1
        optional |= {name for name in components if several and name.startswith(("text_encoder", "tokenizer"))}
    missing = [name for name, each in components.items() if each is None and name not in optional]
    if missing:
        raise InputError(f"{kind} lacks its {' and '.join(missing)}; load it with all its components")


def _safety_checker_of(kind: str) -> str:
    return (
        f"{kind} has a safety checker, which is not compiled; pass safety_checker=None, or --no-safety-checker on the command "
        "line, and check the pictures yourself"
    )
