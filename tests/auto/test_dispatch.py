"""Which task a checkpoint is for: by what its config and Transformers' own classes say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qeff_framework import (
    QEFFAutoModel,
    QEFFAutoModelForCausalLM,
    QEFFAutoModelForFeatureExtraction,
    QEFFAutoModelForImageTextToText,
)
from qeff_framework.auto.dispatch import task_of
from qeff_framework.auto.model import model_of_checkpoint
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.sources import CheckpointSource


@pytest.fixture(scope="module", autouse=True)
def _store(session_store: Path) -> None:
    """What is decided is remembered there."""


def folder(path: Path, model_type: str, *architectures: str, **fields: object) -> Path:
    """A checkpoint of which only the config is looked at."""
    config = {"model_type": model_type, **({"architectures": architectures} if architectures else {}), **fields}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("model_type", "architecture", "task"),
    [
        ("llama", "LlamaForCausalLM", "causal-lm"),
        ("gemma3", "Gemma3ForConditionalGeneration", "image-text-to-text"),
        ("git", "GitForCausalLM", "causal-lm"),
        ("bert", "BertModel", "encoder"),
        ("bert", "BertForPreTraining", "encoder"),
        ("llama", "LlamaModel", "encoder"),
        ("clip_text_model", "CLIPTextModel", "encoder"),
        ("t5", "T5EncoderModel", "encoder"),
        # What the config leaves out is what its class says.
        ("bart", "BartForConditionalGeneration", "seq2seq-lm"),
        ("bart", "BartForCausalLM", "causal-lm"),
        # They read images too, and text alone.
        ("layoutlmv3", "LayoutLMv3Model", "encoder"),
        ("modernvbert", "ModernVBertForMaskedLM", "encoder"),
        ("embedding_gemma2", "EmbeddingGemma2Model", "encoder"),
        ("bert", "BertForSequenceClassification", "sequence-classification"),
        ("bert", "BertForTokenClassification", "token-classification"),
        ("bert", "BertForQuestionAnswering", "question-answering"),
        ("bert", "", "encoder"),
        ("llama", "", "causal-lm"),
        ("llava", "LlavaForConditionalGeneration", "image-text-to-text"),
        ("mllama", "MllamaForConditionalGeneration", "image-text-to-text"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "image-text-to-text"),
        ("llava", "", "image-text-to-text"),
        ("clip", "CLIPModel", "zero-shot-image-classification"),
        ("vit", "ViTForImageClassification", "image-classification"),
        ("wav2vec2", "Wav2Vec2ForCTC", "ctc"),
        ("wav2vec2", "Wav2Vec2ForSequenceClassification", "audio-classification"),
        ("audio-spectrogram-transformer", "ASTForAudioClassification", "audio-classification"),
    ],
)
def test_the_task_of_a_checkpoint(tmp_path: Path, model_type: str, architecture: str, task: str) -> None:
    names = [architecture] if architecture else []
    assert task_of(CheckpointSource(folder(tmp_path, model_type, *names), {})) == task


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("WhisperForConditionalGeneration", "speech-seq2seq"),
        ("WhisperForAudioClassification", "audio-classification"),
        ("", "speech-seq2seq"),
    ],
)
def test_an_encoder_decoder_of_speech(tmp_path: Path, architecture: str, task: str) -> None:
    names = [architecture] if architecture else []
    checkpoint = folder(tmp_path, "whisper", *names, is_encoder_decoder=True)
    assert task_of(CheckpointSource(checkpoint, {})) == task


@pytest.mark.parametrize(
    ("model_type", "architecture", "told"),
    [
        ("moshi", "MoshiForConditionalGeneration", "takes audio and text"),
        ("clipseg", "CLIPSegForImageSegmentation", "takes image and text"),
        ("clap", "ClapModel", "returns no hidden states"),
        ("vit", "ViTModel", "takes image as input"),
        ("wav2vec2", "Wav2Vec2Model", "takes audio as input"),
        ("patchtst", "PatchTSTModel", "takes time as input"),
        ("vit", "", "takes image"),
        ("vision-encoder-decoder", "VisionEncoderDecoderModel", "encoder-decoder"),
        ("bert", "BertForMultipleChoice", "a model for multiple-choice, is for none of the tasks"),
        ("bart", "BartForConditionalGeneration", "its config.json states is_encoder_decoder=false; write true"),
    ],
)
def test_models_of_something_else(tmp_path: Path, model_type: str, architecture: str, told: str) -> None:
    """No task is recommended for them, whichever class was asked."""
    is_encoder_decoder = model_type == "vision-encoder-decoder"
    names = [architecture] if architecture else []
    checkpoint = folder(tmp_path, model_type, *names, is_encoder_decoder=is_encoder_decoder)
    for asked in (QEFFAutoModel, QEFFAutoModelForCausalLM, QEFFAutoModelForFeatureExtraction):
        with pytest.raises(UnsupportedModelError, match=rf"{architecture or model_type}.*{told}") as refusal:
            asked.from_pretrained(checkpoint)
        assert "QEFFAutoModelFor" not in str(refusal.value)


def test_another_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match="not a model for causal-lm but for encoder; use QEFFAutoModelForFeat"
    ):
        QEFFAutoModelForCausalLM.from_pretrained(folder(tmp_path, "bert", "BertModel"))


def test_a_model_of_images_is_one_of_text_for_who_asks(tmp_path: Path) -> None:
    place = folder(tmp_path, "gemma3", "Gemma3ForConditionalGeneration")
    for asked in (QEFFAutoModelForCausalLM, QEFFAutoModelForImageTextToText):
        assert isinstance(asked.from_pretrained(place), asked)
    for prefer in ("causal-lm", "image-text-to-text"):
        assert model_of_checkpoint(place, {}, prefer=prefer).task == prefer
    with pytest.raises(UnsupportedModelError, match="not a model for encoder but for image-text-to-text and causal-lm"):
        QEFFAutoModelForFeatureExtraction.from_pretrained(place)


def test_an_unknown_type_without_code_is_not_told_to_trust_any(tmp_path: Path) -> None:
    for auto_map in ({}, {"AutoTokenizer": ["tok.Martian", None]}):
        with pytest.raises(UnsupportedModelError, match="does not know model_type 'martian'") as refusal:
            QEFFAutoModel.from_pretrained(folder(tmp_path, "martian", "MartianModel", auto_map=auto_map))
        assert "trust" not in str(refusal.value)


def test_own_code_says_what_its_classes_stand_for(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "x.C", "AutoModel": "x.MartianEncoder", "AutoModelForTokenClassification": "x.Tagger"}
    for architecture, task in (("MartianEncoder", "encoder"), ("Tagger", "token-classification")):
        checkpoint = folder(tmp_path, "martian", architecture, auto_map=auto_map)
        assert task_of(CheckpointSource(checkpoint, {"trust_remote_code": True})) == task
