"""Components of a pipeline in a folder whose weights are not read: their parameters point into the files.

Those of diffusers that lie there as safetensors files, with the names that the module has. Everything else (text encoders of
Transformers, files with names of earlier versions, other formats) is left to the loader of diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.artifacts import content_digest
from qeff_framework.sources.files import safetensors_data_start, safetensors_header

if TYPE_CHECKING:
    import torch

_INDEX = "model_index.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
#: Arguments of the loader that say which files or numbers are meant; with one of them it decides.
DECIDED_BY_THE_LOADER = frozenset(
    {
        *("torch_dtype", "dtype", "variant", "use_safetensors", "quantization_config", "device_map", "custom_pipeline"),
        *("use_onnx", "use_flashpack", "subfolder"),
    }
)


@dataclass(frozen=True, kw_only=True)
class StoredComponent:
    """A component whose weights lie in files."""

    kind: type[Any]
    folder: Path
    files: tuple[Path, ...]

    def digests(self) -> dict[Path, str]:
        """SHA-256 of each file."""
        return {file: content_digest(file) for file in self.files}

    def without_numbers(self, places: Mapping[Path, Path] | None = None) -> torch.nn.Module | None:
        """The module, with parameters that point into the files; `None` where the files hold other names or shapes.

        `places`: where the files lie by now.
        """
        import torch
        from safetensors.torch import _TYPES  # Torch's types by their names in the format.

        from qeff_framework.diffusion.components import without_weights
        from qeff_framework.seam.deferred import DeferredTensor, StoredTensor

        module = without_weights(lambda: self.kind.from_config(self.kind.load_config(self.folder)), {})
        types: Mapping[str, Any] = _TYPES
        found: dict[str, StoredTensor] = {}
        for file in self.files:
            start = safetensors_data_start(file)
            for name, entry in safetensors_header(file).items():
                found[name] = StoredTensor(
                    path=(places or {}).get(file, file),
                    offset=start + entry["data_offsets"][0],
                    shape=tuple(entry["shape"]),
                    dtype=types[entry["dtype"]],
                )
        own = module.state_dict()
        if {name: tuple(each.shape) for name, each in own.items()} != {
            name: each.shape for name, each in found.items()
        }:
            return None
        parameters = dict(module.named_parameters())
        for name, stored in found.items():
            owner, _, attribute = name.rpartition(".")
            if name in parameters and not (stored.dtype.is_floating_point and parameters[name].is_floating_point()):
                return None
            # A buffer is small, and a trace takes it for a constant.
            value = (
                torch.nn.Parameter(DeferredTensor.of_file(stored).to(torch.float32), requires_grad=False)
                if name in parameters
                else stored.read().to(own[name].dtype)
            )
            setattr(module.get_submodule(owner), attribute, value)
        return module.eval()

    def load(self) -> torch.nn.Module:
        """The module with its numbers in float32."""
        import torch

        module: torch.nn.Module = self.kind.from_pretrained(self.folder, torch_dtype=torch.float32)
        return module.eval()


def stored_components(place: Path) -> dict[str, StoredComponent]:
    """The components of a folder whose weights lie in files of the usual name, by the name that the pipeline gives them."""
    import diffusers

    try:
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = {}
    for name, entry in index.items():
        library, class_name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        kind = getattr(diffusers, class_name, None) if library == "diffusers" and isinstance(class_name, str) else None
        if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
            continue
        files = _files(place / name)
        if files:
            found[name] = StoredComponent(kind=kind, folder=place / name, files=files)
    return found


def _files(folder: Path) -> tuple[Path, ...]:
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,)
    try:
        index = json.loads((folder / f"{_WEIGHTS}.index.json").read_text(encoding="utf-8"))
        files = tuple(folder / name for name in sorted(set(index["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    return files if all(file.is_file() for file in files) else ()
