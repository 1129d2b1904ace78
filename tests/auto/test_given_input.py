"""Input that a program would refuse is refused before there is one: nothing here has weights, so nothing could be exported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import PIL.Image
import pytest
import soundfile
import transformers
from transformers import CONFIG_MAPPING, Wav2Vec2FeatureExtractor

from qeff_framework import (
    QEFFAutoModelForAudioClassification,
    QEFFAutoModelForCausalLM,
    QEFFAutoModelForCTC,
    QEFFAutoModelForImageTextToText,
    QEFFAutoModelForSeq2SeqLM,
    QEFFAutoModelForSpeechSeq2Seq,
)
from qeff_framework.cli import main
from qeff_framework.errors import CheckpointError, InputError, QEFFError
from qeff_framework.model import GivenInput
from qeff_framework.sources.quiet import missing_library
from tests.checkpoints import save_tiny_checkpoint
from tests.image_models import built, llava, picture, saved_llava
from tests.sound_models import LANGUAGES, RATE, TASKS, clip, speech_model, speech_processor, whisper_extractor

# What is there already is not checked again.
pytestmark = pytest.mark.usefixtures("store_root")


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


def test_a_processor_without_the_files_of_its_tokenizer(tmp_path: Path) -> None:
    """Its preprocessor_config.json is there, and nothing is gained by adding it."""
    folder = folder_of(tmp_path, "wav2vec2", "Wav2Vec2ForCTC")
    Wav2Vec2FeatureExtractor().save_pretrained(folder)  # type: ignore[no-untyped-call]
    with pytest.raises(
        CheckpointError, match="the processor of .* cannot be loaded: .*; add the checkpoint's tokenizer.json"
    ):
        QEFFAutoModelForCTC.from_pretrained(folder).require_input(GivenInput(clips=[1.0]), {})


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--prompt", "w5 " * 40],
            "prompt 0 has 40 tokens, which leaves no room for new ones in ctx_len=16; .* ctx_len=41",
        ),
        (["--prompt", "w5 w6", "--max-new-tokens", "30"], "2 tokens, and 30 new ones make 32: more than ctx_len=16"),
        (
            ["--prompt", "w5", "--num-beams", "3"],
            "num_beams=3: the search takes 3 rows .* would compute 1 .* batch_size=3",
        ),
    ],
    ids=["prompt", "new tokens", "beams"],
)
def test_texts_that_a_program_would_have_no_room_for(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "gpt2", "gpt2")
    assert main(["generate", str(folder), "--backend", "ort_sim", "-O", "ctx_len=16", *arguments]) != 0
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert "exporting" not in told


def test_beams_that_only_the_checkpoint_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Before the export: refused where a prompt is given, a warning where there is only a program to compile."""
    folder = save_tiny_checkpoint(tmp_path, "gpt2")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 4}))
    command = ["generate", str(folder), "--backend", "ort_sim", "--task", "causal-lm"]
    assert main([*command, "--prompt", "w5"]) != 0
    told = capsys.readouterr().err
    assert (
        "config says num_beams=4: the search takes 4 rows for a prompt, and the program would compute 1 at once" in told
    )
    assert "-O batch_size=4); or num_beams=1 (--num-beams 1)" in told
    assert "exporting" not in told
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    sampling = GivenInput(settings={"do_sample": True})
    with pytest.raises(InputError, match="num_beams=4: beam search draws no samples; .* num_beams=1"):
        model.require_input(sampling, {"batch_size": 4})
    model.require_input(GivenInput(settings={"num_beams": 1, "do_sample": True}), {})
    model.require_input(GivenInput(), {"batch_size": 4})
    (folder / "model.safetensors").unlink()
    with pytest.raises(QEFFError):  # there are no weights
        QEFFAutoModelForCausalLM.from_pretrained(folder).compile("ort_sim", ctx_len=16)
    assert "generate would refuse the checkpoint's num_beams=4: the search takes 4 rows" in caplog.text


def test_beams_in_the_config_of_an_old_checkpoint(tmp_path: Path) -> None:
    """Where there is no generation_config.json, Transformers reads the model's own config."""
    folder = folder_of(tmp_path, "bart", "BartForConditionalGeneration")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "num_beams": 3}))
    with pytest.raises(InputError, match="says num_beams=3: the search takes 3 rows"):
        QEFFAutoModelForSeq2SeqLM.from_pretrained(folder).require_input(GivenInput(), {})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    QEFFAutoModelForSeq2SeqLM.from_pretrained(folder).require_input(GivenInput(), {})


def test_a_prompt_with_images_that_is_too_long(tmp_path: Path) -> None:
    """The tokens of its images count, and they are told before the first program is exported."""
    module, _ = built(llava)
    saved_llava(module, tmp_path)
    model = QEFFAutoModelForImageTextToText.from_pretrained(tmp_path)
    image = PIL.Image.new("RGB", (28, 28))
    model.require_input(GivenInput(prompts=["<image> w5 w6"], images=[[image]]), {"ctx_len": 16})
    with pytest.raises(InputError, match=r"prompt 0 has 18 tokens, .* ctx_len=16; .* \(-O ctx_len=19\)"):
        model.compile("ort_sim", ctx_len=16, prefill_seq_len=16)


def test_clips_and_settings_that_a_model_of_sound_would_refuse(tmp_path: Path) -> None:
    speech_model("wav2vec2").save_pretrained(tmp_path / "ctc")
    speech_processor(tmp_path / "ctc").save_pretrained(tmp_path / "ctc")
    model = QEFFAutoModelForCTC.from_pretrained(tmp_path / "ctc")
    model.require_input(GivenInput(clips=[1.0, 0.001]), {})
    with pytest.raises(InputError, match=r"clip 1 lasts 0.0010 s, which is too short for a single frame"):
        model.compile("ort_sim")
    folder = folder_of(tmp_path / "whisper", "whisper", "WhisperForConditionalGeneration")
    whisper = QEFFAutoModelForSpeechSeq2Seq.from_pretrained(folder, processor=whisper_extractor())
    with pytest.raises(InputError, match="speech-seq2seq, whose decoder does not follow regex"):
        whisper.require_input(GivenInput(clips=[1.0], settings={"regex": "a+"}), {})
    with pytest.raises(InputError, match="max_new_tokens=448 and a start token are more than ctx_len=448"):
        whisper.require_input(GivenInput(clips=[1.0], settings={"max_new_tokens": 448}), {})
    with pytest.raises(InputError, match="num_beams=2: the search takes 2 rows"):
        whisper.require_input(GivenInput(clips=[1.0], settings={"num_beams": 2}), {})


def test_a_processor_that_needs_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' message ends in addresses, and hides the reason of an import that fails behind one of its own."""
    folder = folder_of(tmp_path, "whisper", "WhisperForConditionalGeneration")
    model = QEFFAutoModelForSpeechSeq2Seq.from_pretrained(folder)

    def missing(*args: object, **arguments: object) -> None:
        reason = RuntimeError("operator torchvision::nms does not exist")
        raise ModuleNotFoundError("Could not import module 'AutoProcessor'.") from reason

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(
        CheckpointError, match="cannot be loaded here: operator torchvision::nms does not exist; install it"
    ):
        model.require_input(GivenInput(clips=[1.0]), {})
    told = "\nXVideoProcessor requires the Torchvision library but it was not found in your environment. Check out the\npage: ..."
    assert missing_library(ImportError(told)).startswith(
        "XVideoProcessor requires the Torchvision library but it was not found in"
    )
    assert "Check out" not in missing_library(ImportError(told))
