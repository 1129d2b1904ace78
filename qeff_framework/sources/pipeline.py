"""A pipeline of diffusers as the origin of programs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import PackedMatrix
from qeff_framework.sources.fingerprint import structure_fingerprint, tensors_fingerprint
from qeff_framework.sources.uncached import identity_or_nonce

if TYPE_CHECKING:
    import torch


class PipelineSource:
    """A pipeline whose components are in memory."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline = pipeline
        self.name = name
        self._known: Mapping[str, Any] | None = None

    def look_again(self) -> None:
        """Forgets what the pipeline was: its owner may have changed it since."""
        self._known = None

    def _identity(self) -> Mapping[str, Any]:
        from qeff_framework.diffusion.folder import components_with_weights, further_arguments

        modules = components_with_weights(self.pipeline)
        return {
            "class": type(self.pipeline).__qualname__,
            "arguments": further_arguments(self.pipeline),
            "components": {
                name: {
                    "class": type(each).__qualname__,
                    "code": identity_or_nonce(partial(structure_fingerprint, each, self.name), self.name),
                    "weights": identity_or_nonce(partial(tensors_fingerprint, each), self.name),
                }
                for name, each in modules.items()
            },
            "host": _digest_of_host_part(self.pipeline),
        }

    def identity(self) -> Mapping[str, Any]:
        """Class and content of each component, of those without weights by what they save."""
        if self._known is None:
            self._known = self._identity()
        return self._known

    def config(self) -> Mapping[str, Any]:
        """A pipeline has a config for each component, and none of its own."""
        return {}

    @property
    def trusted(self) -> bool:
        """The code of the components has run already."""
        return True

    def load(self, auto_class: str) -> torch.nn.Module:
        """All components that have weights."""
        from qeff_framework.diffusion.calls import PipelineModules
        from qeff_framework.diffusion.folder import components_with_weights

        del auto_class  # the components are loaded
        return PipelineModules(components_with_weights(self.pipeline))

    def load_for_export(self, auto_class: str, directory: Path) -> torch.nn.Module:
        """As `load`."""
        del directory
        return self.load(auto_class)

    def keep_weights(self, used: Collection[str]) -> Mapping[str, str]:
        """No files lie behind it."""
        del used
        return {}

    def unloaded(self) -> frozenset[str]:
        """None: diffusers refuses a checkpoint that lacks weights."""
        return frozenset()

    def packed_matrices(self, module: torch.nn.Module) -> Mapping[str, PackedMatrix]:  # noqa: ARG002 - see `ModelSource`
        """None."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def release(self) -> None:
        """Keeps the pipeline."""

    def save_companions(self, directory: Path) -> None:
        """Writes ``pipeline/``: all but the weights."""
        from qeff_framework.diffusion.folder import save_without_weights

        save_without_weights(self.pipeline, directory / "pipeline")

    def tokenizer_problem(self) -> str | None:
        """None: a pipeline has its tokenizers."""
        return None

    def require_tokenizer(self) -> None:
        """A pipeline reads texts with its own tokenizers."""

    def sentence_transformers(self) -> None:
        """A pipeline says nothing about embeddings."""


def _digest_of_host_part(pipeline: Any) -> str:
    """SHA-256 of what `save_without_weights` writes: schedulers, tokenizers, configs."""
    import hashlib
    import tempfile

    from qeff_framework.diffusion.folder import save_without_weights

    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "pipeline"
        save_without_weights(pipeline, root)
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(root)}|{file.stat().st_size}|".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
