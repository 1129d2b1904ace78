"""What stands in the keys of exports and programs, beside what a model's source says about itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.artifacts import content_digest
from qeff_framework.artifacts.keys import key_value
from qeff_framework.contracts import Transform
from qeff_framework.guarded_hooks import hook_name, marked_methods
from qeff_framework.sources.code_digests import source_digest
from qeff_framework.sources.fingerprint import fingerprint, patches_fingerprint
from qeff_framework.sources.uncached import identity_or_nonce

if TYPE_CHECKING:
    from qeff_framework.relay import Relay

#: Libraries whose versions change the exported graph.
_EXPORT_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")


def transform_part(transform: Transform) -> str:
    """Name and version of a transform, and the package that it is from: names are unique within a package only."""
    module: str = getattr(transform, "__module__", None) or type(transform).__module__
    return f"{module.partition('.')[0]}:{transform.name}@{transform.version}"


def extensions_part(relay: Relay, stage: str) -> dict[str, Any]:
    """What stands in a key for extensions that may change the result of `stage`: all that hook into it and do not deny it."""
    hooks = {"transform", stage}
    found = {
        name: identity_or_nonce(functools.partial(fingerprint, type(extension), name), f"extension '{name}'")
        for name, extension in relay.extensions.items()
        if getattr(extension, "changes_program", True)
        and not hooks.isdisjoint(hook_name(*method) for method in marked_methods(extension))
    }
    return {"extensions": found} if found else {}


def backend_part(relay: Relay, options: object) -> dict[str, Any]:
    """What stands in an export's key for a backend that takes part in it: whatever its hooks can make the result depend on."""
    if relay.descriptor is None:
        return {}  # Only extensions do, which stand there by themselves.
    return {
        "backend": relay.name,
        "package": relay.package,
        "fingerprint": relay.fingerprint(),
        "options": options_part(options),
        **source_part(relay),
    }


def source_part(relay: Relay) -> dict[str, str]:
    """What stands in a key for the backend's code where its version says nothing about it."""
    modules = relay.source_modules
    return {"source": identity_or_nonce(lambda: source_digest(modules), f"backend '{relay.name}'")} if modules else {}


def replacements_part(config: Mapping[str, Any]) -> dict[str, str]:
    """What stands in a key for functions that the process has put in place of those of the libraries."""
    found = identity_or_nonce(lambda: patches_fingerprint(_model_types(config)) or "", "the model")
    return {"patches": found} if found else {}


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """The types of a model and of the models that it is made of, whose configs stand in its own."""
    if "model_type" in config:
        yield str(config["model_type"])
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _model_types(part)


def libraries_part(config: Mapping[str, Any]) -> dict[str, str]:
    """The versions of the libraries whose code makes the graph of a model, or is a part of it."""
    import importlib_metadata

    has_timm = any(model_type.startswith("timm") for model_type in _model_types(config))
    found: dict[str, str] = {}
    for name in (*_EXPORT_LIBRARIES, *(["timm"] if has_timm else [])):
        # A model whose library is not there ends when it is loaded.
        with contextlib.suppress(importlib_metadata.PackageNotFoundError):
            found[name] = importlib_metadata.version(name)
    return found


def options_part(options: object) -> dict[str, object]:
    """Options for a cache key, those that change the program; a path is replaced by what the file contains."""
    values = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
        if field.metadata.get("changes_program", True)
    }
    return {
        name: key_value({"sha256": content_digest(value)} if isinstance(value, Path) else value, f"option '{name}'")
        for name, value in values.items()
    }


def inputs_part(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a graph is made for, for its key: contents of tensors but for those that are inputs of the graph."""
    return {
        name: {"shape": list(value.shape), "dtype": str(value.dtype), "values": _digest_of_constant(name, value)}
        if hasattr(value, "shape")
        else key_value(value, name)
        for name, value in inputs.items()
    }


def _digest_of_constant(name: str, tensor: Any) -> str:
    import hashlib

    # Pixels are an input: only their shape is part of the graph.
    return "" if name == "pixel_values" else hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
