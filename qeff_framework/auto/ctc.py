"""Text from speech, frame by frame, with CTC models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.sound import SoundModel
from qeff_framework.contracts import Task
from qeff_framework.shapes import SoundShapes

if TYPE_CHECKING:
    from qeff_framework.runtime.sound import CompiledCTC


class QEFFAutoModelForCTC(SoundModel):
    """A model that scores the tokens of each frame of speech: Wav2Vec2, HuBERT, WavLM and others.

    ``compile`` takes ``seq_len`` (samples, or feature frames where the feature extractor makes such; several lengths; 10 seconds
    by default) and ``batch_size=1`` beside the backend's options. ``generate`` takes what the processor returns; ``transcribe``
    takes sound and returns texts.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the processor of a module that was built in memory; a checkpoint brings its own.

    Example::

        model = QEFFAutoModelForCTC.from_pretrained("facebook/wav2vec2-base-960h")
        model.compile(backend="ort_sim", seq_len=[80_000, 160_000])
        print(model.transcribe(waveform, sampling_rate=16_000))
    """

    task: ClassVar[Task] = "ctc"
    transformers_class = "AutoModelForCTC"
    shapes = SoundShapes
    counts_frames = True

    def transcribe(self, audio: Any, **settings: Any) -> list[str]:
        """Texts with the compiled program; see `qeff_framework.runtime.sound.CompiledCTC.transcribe`."""
        runner: CompiledCTC = self._runner or self.load()  # type: ignore[assignment]
        return runner.transcribe(audio, **settings)
