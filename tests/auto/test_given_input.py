"""Input that a program would refuse is refused before there is one: nothing here has weights, so nothing could be exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from transformers import CONFIG_MAPPING, Wav2Vec2FeatureExtractor

from qeff_framework import QEFFAutoModelForAudioClassification, QEFFAutoModelForCTC, QEFFAutoModelForSpeechSeq2Seq
from qeff_framework.cli import main
from qeff_framework.errors import CheckpointError, InputError
from qeff_framework.model import GivenInput
from tests.image_models import picture
from tests.sound_models import LANGUAGES, RATE, TASKS, clip, speech_processor, whisper_extractor


def folder_of(path: Path, model_type: str, architecture: str) -> Path:
    """A checkpoint's config alone."""
    config = CONFIG_MAPPING[model_type](architectures=[architecture])
    config.save_pretrained(path)
    return path


def test_clips_longer_than_the_programs(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "wav2vec2", "Wav2Vec2ForCTC")
    speech_processor(folder).save_pretrained(folder)
    model = QEFFAutoModelForCTC.from_pretrained(folder)
    model.require_input(GivenInput(clips=[2.0, 9.5]), {})
    with pytest.raises(
        InputError, match=r"clip 1 lasts 2.50 s, .* a length of 40000, .* would take 32000; .*seq_len=40000"
    ):
        model.require_input(GivenInput(clips=[2.0, 2.5]), {"seq_len": [16_000, 32_000], "batch_size": 1})


def test_a_classifier_of_sound_comes_without_a_tokenizer(tmp_path: Path) -> None:
    """Transformers' processor for the type cannot be made without one; the feature extractor is all that is needed."""
    folder = folder_of(tmp_path, "hubert", "HubertForSequenceClassification")
    with pytest.raises(CheckpointError, match="the processor of .* cannot be loaded: .*; add the checkpoint's"):
        QEFFAutoModelForAudioClassification.from_pretrained(folder).require_input(GivenInput(clips=[1.0]), {})
    Wav2Vec2FeatureExtractor().save_pretrained(folder)  # type: ignore[no-untyped-call]
    model = QEFFAutoModelForAudioClassification.from_pretrained(folder)
    model.require_input(GivenInput(clips=[1.0]), {})
    assert isinstance(model.processor, Wav2Vec2FeatureExtractor)


def test_languages_and_tasks_that_a_checkpoint_does_not_know(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "whisper", "WhisperForConditionalGeneration")
    (folder / "generation_config.json").write_text(json.dumps({"lang_to_id": LANGUAGES, "task_to_id": TASKS}))
    model = QEFFAutoModelForSpeechSeq2Seq.from_pretrained(folder, processor=whisper_extractor())
    model.require_input(GivenInput(clips=[70.0], language="German", speech_task="translate"), {})
    with pytest.raises(InputError, match="does not know the language 'klingon'; it knows de, en"):
        model.require_input(GivenInput(language="klingon"), {})
    with pytest.raises(InputError, match="does not know the task 'sing'"):
        model.require_input(GivenInput(speech_task="sing"), {})


@pytest.mark.parametrize(
    ("model_type", "architecture", "given", "message"),
    [
        ("gpt2", "GPT2LMHeadModel", "--image", "for causal-lm: --image is for models of images; leave it out"),
        ("wav2vec2", "Wav2Vec2ForCTC", "--image", "for ctc: --image is for models of images; leave it out"),
        ("resnet", "ResNetForImageClassification", "--audio", "it works on images; give them with --image FILE"),
        (
            "llava",
            "LlavaForConditionalGeneration",
            "--audio",
            "--audio is for models of speech and sound; leave it out",
        ),
        (
            "wav2vec2",
            "Wav2Vec2ForCTC",
            "--audio",
            "the processor of wav2vec2, which prepares its input, cannot be loaded",
        ),
        (
            "resnet",
            "ResNetForImageClassification",
            "--image",
            "the processor of resnet, which prepares its input, cannot",
        ),
    ],
)
def test_files_for_a_model_of_something_else_or_without_a_processor(
    model_type: str, architecture: str, given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / model_type, model_type, architecture)
    soundfile.write(tmp_path / "a.wav", clip(0.1), RATE)
    file = tmp_path / "a.wav" if given == "--audio" else picture(tmp_path / "a.png", 5)
    texts = ["--prompt", "w5"] if model_type == "gpt2" else []
    assert main(["generate", str(folder), "--backend", "ort_sim", given, str(file), *texts]) != 0
    told = capsys.readouterr().err
    assert message in told
    assert "exporting" not in told
