"""What the classes share whose models read sound, or images without text: a processor that says what the model is given."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.model import Program
from qeff_framework.sources import CheckpointSource, ModelSource

if TYPE_CHECKING:
    import torch

    from qeff_framework.relay import Relay

#: What a program is compiled for unless its length is given.
_SECONDS = 10


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


class SoundModel(ProcessedModel):
    """A model that reads a clip of sound in one pass: a waveform, or the feature frames that its feature extractor makes."""

    #: The program returns something for each frame.
    counts_frames: ClassVar[bool] = False

    def _programs(self, relay: Relay, options: object, shapes: Any) -> list[Program]:
        shapes = self._with_lengths(shapes)
        plan = self._plan_export(relay, options)
        entries = shapes.specializations()
        if self.counts_frames and shapes.lengths:
            # How many frames a length makes is known once the model was traced.
            frames = self._export(plan).metadata["frames"]
            entries = tuple(
                dataclasses.replace(
                    entry, dims={**entry.dims, "num_frames": frames_of(entry.dims["seq_len"], frames, self.name)}
                )
                for entry in entries
            )
        return [Program(name="", plan=plan, specializations=entries)]

    def _with_lengths(self, shapes: Any) -> Any:
        """The sizes with the lengths that they leave open; without lengths for a model that takes one only."""
        signal, length = self._signal
        if None not in signal["shape"]:
            if shapes.lengths:
                raise OptionError(
                    f"seq_len cannot be chosen for {self.name}: its processor makes the same length of every clip; leave it out"
                )
            return shapes
        if shapes.lengths:
            return shapes
        if length is None:
            raise OptionError(f"{self.name} has no processor that tells the length of its input; give seq_len=")
        return dataclasses.replace(shapes, seq_len=length)

    def _program_inputs(self) -> Mapping[str, Any]:
        return self._signal[0]

    @cached_property
    def _signal(self) -> tuple[Mapping[str, Any], int | None]:
        """Name and shape of the input, see `contracts.ExportRequest.program_inputs`; the length of a clip of 10 s."""
        import numpy as np

        if not self._has_processor:
            # A model in memory: a waveform, unless a processor says otherwise.
            return {"name": self._main_input(), "shape": [None]}, None
        extractor = getattr(self.processor, "feature_extractor", self.processor)
        rate = int(getattr(extractor, "sampling_rate", 16_000))
        shapes = []
        for seconds in (1, _SECONDS):
            clip = np.zeros(seconds * rate, dtype=np.float32)
            made = extractor(clip, sampling_rate=rate, return_tensors="np")
            shapes.append(tuple(made[extractor.model_input_names[0]].shape[1:]))
        short, long = shapes
        shape = [size if size == other else None for size, other in zip(short, long, strict=True)]
        length = long[0] if None in shape else None
        return {"name": extractor.model_input_names[0], "shape": shape}, length

    def _main_input(self) -> str:
        return str(getattr(self.module, "main_input_name", "input_values"))


def frames_of(length: int, frames: Mapping[str, int], name: str) -> int:
    """How many frames a model makes of a length. Raises `OptionError` for too short a one."""
    count = (length + frames["offset"]) // frames["stride"]
    if count < 1:
        raise OptionError(f"seq_len={length} is too little for a single frame of {name}; give more")
    return count
