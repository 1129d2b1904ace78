"""What the classes share whose models read sound or images: a processor that says what the model is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qeff_framework.artifacts.digests import file_sha256
from qeff_framework.auto.task_model import TaskModel
from qeff_framework.errors import CheckpointError
from qeff_framework.model import GivenInput
from qeff_framework.sources import CheckpointSource, ModelSource
from qeff_framework.sources.tokenizers import save_tokenizer

if TYPE_CHECKING:
    import torch

#: Where an artifact has its processor.
_FOLDER = "processor"


class ProcessedModel(TaskModel):
    """A model with a processor; the artifact carries it.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the processor or feature extractor of a module that was built in memory; a checkpoint brings its own.
    """

    #: The class of Transformers that loads as much of a processor as the task cannot do without.
    processor_part: ClassVar[str] = "AutoProcessor"

    def __init__(self, model: torch.nn.Module | ModelSource, *, processor: Any = None) -> None:
        super().__init__(model)
        self._processor = processor
        self._is_given = processor is not None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, processor: Any = None, **hf_kwargs: Any
    ) -> Self:
        """Takes a checkpoint; see `QEFFBaseModel.from_pretrained` and the class."""
        source = CheckpointSource(pretrained_model_name_or_path, hf_kwargs)
        cls._check_architecture(source)
        return cls(source, processor=processor)

    @property
    def processor(self) -> Any:
        """The processor that was given, or the checkpoint's.

        Raises:
            CheckpointError: there is none, or it cannot be loaded here.
        """
        if self._processor is None:
            if not isinstance(self._source, CheckpointSource):
                raise CheckpointError(
                    f"{self.name} is a module in memory, which carries no processor; pass processor=..."
                )
            self._processor = self._source.processor(self.processor_part)
        return self._processor

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Adds the processor of images and sound."""
        # A checkpoint without a processor has often no tokenizer either, and is first of all in want of a processor.
        if given.images or given.videos or given.clips:
            _ = self.processor
        super().require_input(given, sizes)

    @property
    def _has_processor(self) -> bool:
        """A checkpoint without one is refused where it is asked for it."""
        return self._processor is not None or isinstance(self._source, CheckpointSource)

    def _export_key(self) -> Mapping[str, object]:
        """A processor that was given is carried by the artifact; a checkpoint's belongs to the checkpoint."""
        return {**super()._export_key(), **({"processor": self._digests} if self._is_given else {})}

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """Of the files that stand for the processor."""
        with TemporaryDirectory() as folder:
            place = Path(folder) / _FOLDER
            self.processor.save_pretrained(place)
            return {
                path.relative_to(place).as_posix(): file_sha256(path)
                for path in sorted(place.rglob("*"))
                if path.is_file()
            }

    def _complete_export(self, directory: Path) -> Mapping[str, Any]:
        """Adds the processor, so that files can be read without the checkpoint, and the tokenizer of one that was given."""
        if self._has_processor:
            self.processor.save_pretrained(directory / _FOLDER)
        tokenizer = getattr(self._processor, "tokenizer", None) if self._is_given else None
        if tokenizer is not None:
            save_tokenizer(tokenizer, directory / "tokenizer")
        return {}
