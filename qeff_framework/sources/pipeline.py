"""A pipeline of diffusers as the origin of programs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import CheckpointError, InputError
from qeff_framework.sources.fingerprint import structure_fingerprint, tensors_fingerprint
from qeff_framework.sources.in_memory import InMemorySource
from qeff_framework.sources.references import PlacedShards
from qeff_framework.sources.uncached import identity_or_nonce

if TYPE_CHECKING:
    import torch

    from qeff_framework.sources.pipeline_files import StoredComponent


class PipelineSource(InMemorySource):
    """A pipeline in memory.

    Args:
        pipeline: the pipeline.
        name: for people.
        stored: its components whose parameters point into files, which are referred to.
    """

    def __init__(self, pipeline: Any, name: str, stored: Mapping[str, StoredComponent] | None = None) -> None:
        self.pipeline = pipeline
        self.name = name
        self.stored = dict(stored or {})
        self._known: dict[str, Mapping[str, Any]] = {}
        #: Weights of each component that the pipeline's own code computes with; see `diffusion.recording`.
        self.host_weights: Mapping[str, Mapping[str, torch.Tensor]] = {}
        #: The component whose program is exported; "" for all of them.
        self.exported = ""
        self._placed: PlacedShards | None = None

    def look_again(self) -> None:
        """Forgets what the pipeline was: its owner may have changed it since."""
        self._known = {}

    def _identity(self, name: str) -> Mapping[str, Any]:
        component = getattr(self.pipeline, name)
        return {
            "class": type(component).__qualname__,
            "code": identity_or_nonce(partial(structure_fingerprint, component, self.name), self.name),
            "weights": sorted(self.stored[name].digests().values())
            if name in self.stored
            else identity_or_nonce(partial(tensors_fingerprint, component), self.name),
        }

    def identity(self) -> Mapping[str, Any]:
        """Class and content of the component that is exported: pipelines that share one share its programs."""
        from qeff_framework.diffusion.folder import components_with_weights

        names = [self.exported] if self.exported else [*components_with_weights(self.pipeline)]
        for name in names:
            if name not in self._known:
                self._known[name] = self._identity(name)
        return {"components": {name: self._known[name] for name in names}}

    def host_identity(self) -> Mapping[str, Any]:
        """Of the part that is no program: class, schedulers, tokenizers, configs."""
        from qeff_framework.diffusion.folder import further_arguments

        return {
            "class": type(self.pipeline).__qualname__,
            "arguments": further_arguments(self.pipeline),
            "host": self._digest_of_host_part(),
        }

    def config(self) -> Mapping[str, Any]:
        """A pipeline has a config for each component, and none of its own."""
        return {}

    def load(self, auto_class: str) -> torch.nn.Module:
        """All components that have weights, with their numbers."""
        from qeff_framework.diffusion.calls import PipelineModules
        from qeff_framework.diffusion.folder import components_with_weights

        del auto_class  # the components are loaded
        components = components_with_weights(self.pipeline)
        return PipelineModules(components | {name: each.load() for name, each in self.stored.items()})

    def load_for_export(self, auto_class: str, directory: Path) -> torch.nn.Module:
        """The component that is exported; `directory` gets the files that its parameters point into."""
        from qeff_framework.diffusion.calls import PipelineModules
        from qeff_framework.diffusion.folder import components_with_weights

        self._placed = None
        if not self.exported:
            return self.load(auto_class)
        stored = self.stored.get(self.exported)
        if stored is None:
            # Without the components that lie in files: the denoiser's numbers are no part of a text encoder's program.
            return PipelineModules({self.exported: components_with_weights(self.pipeline)[self.exported]})
        self._placed = PlacedShards(stored.digests(), directory, name=self.name)
        places = {file: self._placed.path_of(file) or file for file in stored.files}
        module = stored.without_numbers(places)
        if module is None:
            raise CheckpointError(f"the files of {self.exported} in {stored.folder} changed; load the pipeline again")
        return PipelineModules({self.exported: module})

    def keep_weights(self, used: Collection[str]) -> Mapping[str, str]:
        """See `ModelSource`."""
        return {} if self._placed is None else self._placed.keep(used)

    def save_companions(self, directory: Path) -> None:
        """Writes nothing: an export is of one component, which other pipelines may share; see `save_host_part`."""

    def save_host_part(self, directory: Path) -> None:
        """Writes ``pipeline/``: all but the weights."""
        from qeff_framework.diffusion.folder import save_without_weights

        save_without_weights(self.pipeline, directory / "pipeline", self.host_weights)

    def require_tokenizer(self) -> None:
        """A pipeline reads texts with its own tokenizers."""

    def tokenizer(self) -> Any:
        """See `require_tokenizer`."""
        raise InputError(f"{self.name} carries no tokenizer of its own")

    def has_chat_template(self) -> bool:
        """A pipeline has no conversations."""
        return False

    def _digest_of_host_part(self) -> str:
        """SHA-256 of what `save_host_part` writes: schedulers, tokenizers, configs."""
        import hashlib
        import tempfile

        digest = hashlib.sha256()
        with tempfile.TemporaryDirectory() as scratch:
            self.save_host_part(Path(scratch))
            for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(scratch)}|{file.stat().st_size}|".encode())
                digest.update(file.read_bytes())
        return digest.hexdigest()
