"""Class scores of sound."""

from __future__ import annotations

from typing import ClassVar

from qeff_framework.auto.sound import SoundModel
from qeff_framework.contracts import Task
from qeff_framework.shapes import SoundShapes


class QEFFAutoModelForAudioClassification(SoundModel):
    """A classifier of sound: a speech encoder with a classification head, or an audio spectrogram transformer.

    ``compile`` takes ``seq_len`` (samples, or feature frames where the feature extractor makes such; several lengths; 10 seconds
    by default; none where every clip gets the same length) and ``batch_size=1`` beside the backend's options. ``generate`` takes
    what the feature extractor returns, and returns the logits ``[N, labels]``; the loaded program knows the ``labels``.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the feature extractor of a module that was built in memory; a checkpoint brings its own.

    Example::

        model = QEFFAutoModelForAudioClassification.from_pretrained("superb/wav2vec2-base-superb-ks")
        model.compile(backend="ort_sim", seq_len=16_000)
        logits = model.generate(**model.processor(waveform, sampling_rate=16_000, return_tensors="np"))
    """

    task: ClassVar[Task] = "audio-classification"
    transformers_class = "AutoModelForAudioClassification"
    shapes = SoundShapes
    processor_part = "AutoFeatureExtractor"
