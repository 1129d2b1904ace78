"""What the classes share whose models read sound or images: a processor that says what the model is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.errors import CheckpointError
from qeff_framework.sources import CheckpointSource, ModelSource

if TYPE_CHECKING:
    import torch


class ProcessedModel(TaskModel):
    """A model with a processor; the artifact carries it.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the processor or feature extractor of a module that was built in memory; a checkpoint brings its own.
    """

    def __init__(self, model: torch.nn.Module | ModelSource, *, processor: Any = None) -> None:
        super().__init__(model)
        self._processor = processor

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
            self._processor = self._source.processor()
        return self._processor

    @property
    def _has_processor(self) -> bool:
        """A checkpoint without one is refused where it is asked for it."""
        return self._processor is not None or isinstance(self._source, CheckpointSource)

    def _complete_export(self, directory: Path) -> Mapping[str, Any]:
        """Adds the processor, so that files can be read without the checkpoint."""
        if self._has_processor:
            self.processor.save_pretrained(directory / "processor")
        return {}
