"""What the classes share whose models read sound: the length of a clip, and the frames that a model makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.processed_model import ProcessedModel
from qeff_framework.errors import InputError, OptionError
from qeff_framework.model import GivenInput
from qeff_framework.plans import Program

if TYPE_CHECKING:
    from qeff_framework.relay import Relay

#: What a program is compiled for unless its length is given.
_SECONDS = 10
#: Samples per second of a processor that does not say.
_RATE = 16_000


class SoundModel(ProcessedModel):
    """A model that reads a clip of sound in one pass: a waveform, or the feature frames that its feature extractor makes."""

    #: The program returns something for each frame.
    counts_frames: ClassVar[bool] = False
    #: A decoder reads what the encoder makes of the sound.
    _has_decoder: ClassVar[bool] = False

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

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Adds clips that are longer than the programs."""
        super().require_input(given, sizes)
        if not given.clips:
            return
        shapes = self._with_lengths(self._sizes_among(sizes))
        for number, seconds in enumerate(given.clips):
            length = self._length_of(seconds) if shapes.lengths else 0
            if length > max(shapes.lengths, default=0):
                raise InputError(
                    f"clip {number} lasts {seconds:.2f} s, which is a length of {length}, and the longest program would take "
                    f"{max(shapes.lengths)}; cut it, or compile with seq_len={length} (-O seq_len={length})"
                )

    def _require_room(self, given: GivenInput, shapes: Any) -> None:
        """Refuses clips too short for a frame: those that the model's code cannot take, on tensors without data."""
        if not given.clips or (not shapes.lengths and None not in self._signal[0]["shape"]):
            return
        number, seconds = min(enumerate(given.clips), key=lambda each: each[1])
        if (problem := self._problem_of(self._length_of(seconds))) and not self._problem_of(self._length_of(_SECONDS)):
            raise InputError(
                f"clip {number} lasts {seconds:.4f} s, which is too short for a single frame of {self.name}: {problem}; give a "
                "longer one"
            )

    def _problem_of(self, length: int) -> str:
        """What a forward of the model without weights stumbles over; nothing where it runs or cannot be made."""
        import torch
        import transformers

        signal = self._signal[0]
        shape = [1, *(length if size is None else size for size in signal["shape"])]
        try:
            with torch.device("meta"), torch.no_grad():
                config = transformers.AutoConfig.for_model(**self.config)
                module = getattr(transformers, self.transformers_class).from_config(config).eval()
                encoder = module.get_encoder() if self._has_decoder else module
        except Exception:  # noqa: BLE001 - code of a checkpoint, or an old config: told once it is loaded
            return ""
        try:
            with torch.device("meta"), torch.no_grad():
                encoder(torch.zeros(shape))
        except Exception as error:  # noqa: BLE001 - whatever the code raises for the length
            return str(error).partition("\n")[0]
        return ""

    def _length_of(self, seconds: float) -> int:
        """How long the processor's result is for a clip."""
        import numpy as np

        extractor = getattr(self.processor, "feature_extractor", self.processor)
        rate = int(getattr(extractor, "sampling_rate", _RATE))
        made = extractor(np.zeros(round(seconds * rate), dtype=np.float32), sampling_rate=rate, return_tensors="np")
        name = extractor.model_input_names[0]
        return int(made[name].shape[1 + self._signal[0]["shape"].index(None)])

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
        rate = int(getattr(extractor, "sampling_rate", _RATE))
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
        return str(getattr(self._loaded_module(), "main_input_name", "input_values"))


def frames_of(length: int, frames: Mapping[str, int], name: str) -> int:
    """How many frames a model makes of a length. Raises `OptionError` for too short a one."""
    count = (length + frames["offset"]) // frames["stride"]
    if count < 1:
        raise OptionError(f"seq_len={length} is too little for a single frame of {name}; give more")
    return count
