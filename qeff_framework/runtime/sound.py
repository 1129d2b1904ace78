"""Texts and classes of sound with loaded programs."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from qeff_framework.errors import InputError
from qeff_framework.runtime.classifiers import CompiledClassifier
from qeff_framework.runtime.processed import ProcessedRunner, processor_output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FrameLogits(NamedTuple):
    """Scores of each frame, and how many of them are real."""

    #: float32 ``[N, T, V]``; those behind a row's last real frame are 0.
    logits: NDArray[Any]
    #: Real frames of each row, ``[N]``.
    lengths: NDArray[np.int64]


class SoundRunner(ProcessedRunner):
    """A loaded program with a processor that prepares sound for it."""

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms that the processor takes."""
        return int(getattr(self.processor, "feature_extractor", self.processor).sampling_rate)

    def prepared(self, audio: Any, *, sampling_rate: int | None = None, processor: Any = None) -> Mapping[str, Any]:
        """What the processor makes of sound, in NumPy.

        Args:
            audio: one waveform ``[samples]`` or several of any lengths, float32.
            sampling_rate: of the waveforms; it must be the processor's own.
            processor: the checkpoint's processor; `None` takes the one that the artifact carries.

        Raises:
            InputError: another sampling rate, or what the processor refuses.
        """
        import numpy as np

        chosen = processor if processor is not None else self.processor
        extractor = getattr(chosen, "feature_extractor", chosen)
        rate = int(extractor.sampling_rate)
        given_rate: Any = sampling_rate
        if isinstance(given_rate, bool) or not isinstance(given_rate, Real | None):
            raise InputError(f"sampling_rate={sampling_rate!r} must be a number of samples per second")
        if sampling_rate is not None and sampling_rate != rate:
            raise InputError(
                f"the sound has {sampling_rate} samples per second, and the model was made for {rate}; resample it first, for "
                "instance with soxr.resample"
            )
        if isinstance(audio, (list, tuple)) and not len(audio):
            raise InputError("there is no sound: the list of clips is empty")
        several = isinstance(audio, (list, tuple)) and (np.ndim(audio[0]) > 0 or isinstance(audio[0], (str, PathLike)))
        clips = [_samples(clip, number) for number, clip in enumerate(audio if several else [audio])]
        # One by one, and put together by the program: what pads them together may normalise over the padding.
        try:
            made = [self._prepared_clip(extractor, clip, rate) for clip in clips]
        except Exception as error:  # a processor is code of another library
            lengths = ", ".join(f"{clip.size}" for clip in clips)
            raise InputError(f"the processor does not take clips of {lengths} samples: {error}") from error
        return {name: [row for each in made for row in each[name]] for name in made[0]}

    def _prepared_clip(self, extractor: Any, clip: NDArray[Any], rate: int) -> Mapping[str, Any]:
        made: Mapping[str, Any] = extractor(clip, sampling_rate=rate, return_tensors="np")
        return made


def _samples(given: Any, number: int) -> NDArray[Any]:
    """The waveform ``[samples]`` in float32. Raises `InputError` for what is none."""
    import numpy as np

    form = "give float32 from -1 to 1"
    try:
        clip = np.asarray(given)
    except Exception as error:  # an array of any library makes its own NumPy array
        raise InputError(f"clip {number} cannot be read as numbers ({error}); {form}") from error
    if clip.dtype.kind in "US" or isinstance(given, PathLike):
        raise InputError(
            f"clip {number} is a text, not a waveform; {form}: of a file, for instance soundfile.read(file, dtype='float32')[0], "
            "or use qeff generate --audio"
        )
    # Whole numbers in a list are samples as Transformers reads them.
    if clip.dtype.kind not in "fiu" or (clip.dtype.kind != "f" and hasattr(given, "dtype")):
        raise InputError(
            f"clip {number} is of type {clip.dtype}; {form}, of 16 bits for instance clip.astype('float32') / 32768"
        )
    if clip.ndim != 1 or not clip.size:
        raise InputError(f"clip {number} has the shape {list(clip.shape)}; give one channel, [samples]")
    return clip.astype(np.float32, copy=False)


class CompiledCTC(SoundRunner):
    """Scores of each frame of speech with a loaded program."""

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> FrameLogits:
        """Scores the frames of what a processor returns.

        Args:
            inputs: ``input_values [N, S]`` or ``input_features [N, S, F]``, also rows of unequal lengths, and an
                ``attention_mask [N, S]`` where rows end in padding. Without a mask all of a row is sound, as in Transformers.
            **tensors: the same as keywords (``generate(**processor(...))``).

        Raises:
            InputError: no inputs, or longer ones than were compiled for.
        """
        outputs, lengths = self._signals(processor_output(inputs, tensors))
        return FrameLogits(outputs["logits"], lengths)

    def transcribe(self, audio: Any, *, sampling_rate: int | None = None, processor: Any = None) -> list[str]:
        """The text of each clip: the most likely token of each frame, put together by the processor's tokenizer.

        See `prepared` for the arguments; a `processor` must have a tokenizer.
        """
        chosen = processor if processor is not None else self.processor
        found = self.generate(self.prepared(audio, sampling_rate=sampling_rate, processor=chosen))
        if not hasattr(chosen, "decode"):
            raise InputError("the processor has no tokenizer, so that no text can be made; use generate for the scores")
        ids = found.logits.argmax(axis=-1)
        return [str(chosen.decode(row[:length])) for row, length in zip(ids, found.lengths, strict=True)]


class CompiledAudioClassifier(SoundRunner, CompiledClassifier):
    """Class scores of sound with a loaded program."""

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> NDArray[Any]:
        """Classifies what a feature extractor returns; see `CompiledCTC.generate`. Returns logits, float32 ``[N, labels]``."""
        outputs, _ = self._signals(processor_output(inputs, tensors))
        return outputs["logits"]
