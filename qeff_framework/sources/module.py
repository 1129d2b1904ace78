"""A torch module that is in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.sources.configs import (
    checked_module,
    content_of,
    generation_config,
    plain_config,
    save_generation_config,
    write_json,
)

if TYPE_CHECKING:
    import torch


class ModuleSource:
    """A torch module that the caller has built or loaded."""

    def __init__(self, module: torch.nn.Module) -> None:
        if not hasattr(module, "config") or not hasattr(module.config, "to_dict"):
            raise UnsupportedModelError(
                f"{type(module).__name__} has no Transformers config; pass a Transformers model, or use from_pretrained()"
            )
        self._module = module
        config: Any = module.config
        self.name = str(getattr(config, "name_or_path", "") or config.model_type)

    def identity(self) -> Mapping[str, Any]:
        """Class, configs and a digest over every parameter and buffer."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self._module.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
        return {
            "class": type(self._module).__qualname__,
            "config": content_of(self.config()),
            # An artifact carries it, as it carries the file of a checkpoint.
            "generation_config": content_of(generation_config(self._module) or {}),
            "weights": digest.hexdigest(),
        }

    def config(self) -> Mapping[str, Any]:
        """The module's own config, made serialisable."""
        return plain_config(self._module.config)

    def load(self, auto_class: str) -> torch.nn.Module:
        """The module itself; it must be float32 already."""
        del auto_class  # the module is loaded
        return checked_module(self._module)

    def release(self) -> None:
        """Keeps the module: it belongs to the caller."""

    def save_companions(self, directory: Path) -> None:
        """A module carries config and generation config, and no tokenizer."""
        write_json(directory / "config.json", self.config())
        save_generation_config(self._module, directory)

    def pooling(self) -> str | None:
        """A module says nothing about pooling."""
        return None
