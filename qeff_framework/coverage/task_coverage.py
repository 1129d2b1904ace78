"""How the model types of each task are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from qeff_framework.coverage import families, images, images_alone, parity, pipelines, reference, sound, tiny_pipelines
from qeff_framework.coverage.tiny import tiny_model


@dataclass(frozen=True, kw_only=True)
class TaskCoverage:
    """The model types of a task, and what each must pass."""

    #: Heading of the task's section of the coverage page.
    title: str
    #: The fact that the page shows as deviation.
    deviation: str
    #: Every model type of the task.
    types: Callable[[], list[str]]
    #: The facts of a tiny model's reference. Raises `UnsupportedModelError` for one that any export would equal.
    check_reference: Callable[[str], dict[str, Any]]
    #: The tiny module of a type.
    model: Callable[[str], Any]
    #: Runs a tiny module on a backend, adds to the facts, and raises `CheckError` where it differs from the library.
    check: Callable[[Any, str, dict[str, Any]], dict[str, Any]]
    #: Distribution whose types they are.
    library: str = "transformers"
    #: Whether there is a tiny model of the type; one without is not run.
    is_built: Callable[[str], bool] = lambda model_type: True


CAUSAL_LM: Final = TaskCoverage(
    title="Causal language models",
    deviation="logit_error",
    types=families.causal_lm_types,
    check_reference=reference.check_causal_lm,
    model=partial(tiny_model, task="causal-lm"),
    check=parity.check_causal_lm,
)
ENCODER: Final = TaskCoverage(
    title="Text encoders",
    deviation="hidden_error",
    types=families.encoder_types,
    check_reference=reference.check_encoder,
    model=partial(tiny_model, task="encoder"),
    check=parity.check_encoder,
)
SEQ2SEQ_LM: Final = TaskCoverage(
    title="Encoder-decoder language models",
    deviation="logit_error",
    types=families.seq2seq_lm_types,
    check_reference=reference.check_seq2seq_lm,
    model=partial(tiny_model, task="seq2seq-lm"),
    check=parity.check_seq2seq_lm,
)
IMAGE_TEXT_TO_TEXT: Final = TaskCoverage(
    title="Vision-language models",
    deviation="image_error",
    types=images.image_text_types,
    check_reference=images.check_reference,
    model=images.tiny_image_model,
    check=images.check_image_text,
)
SPEECH_SEQ2SEQ: Final = TaskCoverage(
    title="Speech models with encoder and decoder",
    deviation="margin",
    types=sound.speech_seq2seq_types,
    check_reference=partial(sound.check_reference, task="speech-seq2seq"),
    model=partial(sound.tiny_sound_model, task="speech-seq2seq"),
    check=sound.check_speech_seq2seq,
)
CTC: Final = TaskCoverage(
    title="CTC models of speech",
    deviation="logit_error",
    types=sound.ctc_types,
    check_reference=partial(sound.check_reference, task="ctc"),
    model=partial(sound.tiny_sound_model, task="ctc"),
    check=partial(sound.check_scores, task="ctc"),
)
AUDIO_CLASSIFICATION: Final = TaskCoverage(
    title="Classifiers of sound",
    deviation="logit_error",
    types=sound.audio_classification_types,
    check_reference=partial(sound.check_reference, task="audio-classification"),
    model=partial(sound.tiny_sound_model, task="audio-classification"),
    check=partial(sound.check_scores, task="audio-classification"),
)
IMAGE_CLASSIFICATION: Final = TaskCoverage(
    title="Classifiers of images",
    deviation="score_error",
    types=images_alone.image_classification_types,
    check_reference=partial(images_alone.check_reference, task="image-classification"),
    model=partial(images_alone.tiny_images_alone, task="image-classification"),
    check=images_alone.check_classes,
)
ZERO_SHOT_IMAGE_CLASSIFICATION: Final = TaskCoverage(
    title="Models that embed images and texts in one space",
    deviation="score_error",
    types=images_alone.zero_shot_types,
    check_reference=partial(images_alone.check_reference, task="zero-shot-image-classification"),
    model=partial(images_alone.tiny_images_alone, task="zero-shot-image-classification"),
    check=images_alone.check_spaces,
)
TEXT_TO_IMAGE: Final = TaskCoverage(
    title="Pipelines of diffusers",
    deviation="pixel_error",
    types=lambda: list(tiny_pipelines.pipeline_classes()),
    check_reference=pipelines.check_reference,
    model=tiny_pipelines.tiny_pipeline,
    check=pipelines.check_pipeline,
    library="diffusers",
    is_built=tiny_pipelines.is_built,
)
