"""Tiny random models of sound through `ort_sim`: the logits of Transformers for each clip alone, however far it is padded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from qeff_framework import QEFFAutoModel, QEFFAutoModelForCTC, load_compiled
from qeff_framework.cli.app import main
from qeff_framework.coverage.sound import check_speech_seq2seq, tiny_sound_model
from qeff_framework.errors import CheckpointError, InputError
from tests.sound_models import RATE, clip, speech_model, speech_processor

CLIPS = [clip(0.31, 0), clip(0.2, 1), clip(0.05, 2)]


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


def test_logits_of_each_frame_are_those_of_the_clip_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first convolution is normalised over all frames, padding must have no part in that."""
    module = speech_model("wav2vec2", feat_extract_norm="group")
    for part in (module, speech_processor(tmp_path / "processor")):
        part.save_pretrained(tmp_path / "model")
    model = QEFFAutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(model, QEFFAutoModelForCTC)
    compiled = model.compile("ort_sim", seq_len=[3200, 6000], batch_size=2)
    fast = soxr.resample(CLIPS[0], RATE, 44_100)
    with load_compiled(compiled.directory) as program:
        inputs = program.prepared(CLIPS, sampling_rate=RATE)
        logits, lengths = program.generate(inputs)
        texts = program.transcribe(CLIPS)
        (resampled,) = program.transcribe(soxr.resample(fast, 44_100, RATE))
        with pytest.raises(InputError, match="the longest input has a length of 8000, the program was compiled for"):
            program.generate(program.prepared(clip(0.5)))
        with pytest.raises(InputError, match="has 8000 samples per second, and the model was made for 16000"):
            program.transcribe(CLIPS, sampling_rate=8000)
        with pytest.raises(InputError, match="clip 0 is of type int16; give float32 from -1 to 1"):
            program.transcribe((CLIPS[0] * 32767).astype(np.int16))
        for odd, told in (
            ([], "there is no sound: the list of clips is empty"),
            (["speech.wav"], r"clip 0 is a text, not a waveform; give .* soundfile\.read"),
            (Path("speech.wav"), "clip 0 is a text, not a waveform"),
            (CLIPS[0].astype(np.complex64), "clip 0 is of type complex64"),
            (CLIPS[0] > 0, "clip 0 is of type bool"),
            ([*CLIPS, [0.5, None]], f"clip {len(CLIPS)} is of type object"),
        ):
            with pytest.raises(InputError, match=told):
                program.transcribe(odd)
        with pytest.raises(InputError, match="sampling_rate='16000' must be a number of samples per second"):
            program.transcribe(CLIPS, sampling_rate="16000")
        assert program.transcribe([each.tolist() for each in CLIPS], sampling_rate=np.int64(RATE)) == texts
    for number, length in enumerate(lengths):
        with torch.no_grad():
            wanted = module(torch.tensor(np.asarray(inputs["input_values"][number]))[None]).logits[0].numpy()
        assert length == len(wanted)
        np.testing.assert_allclose(logits[number, :length], wanted, atol=1e-4)
        assert texts[number] == model.processor.decode(wanted.argmax(-1))
    file = tmp_path / "speech.wav"
    soundfile.write(file, np.stack([fast, fast], axis=1), 44_100, subtype="FLOAT")
    assert main(["generate", str(compiled.directory), "--audio", str(file), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result == {
        "file": str(file),
        "seconds": pytest.approx(0.31, abs=0.001),
        "sampling_rate": 44_100,
        "text": resampled,
    }
    soundfile.write(file, clip(1), RATE)
    assert main(["generate", str(compiled.directory), "--audio", str(file)]) != 0
    assert "a length of 16000, the program was compiled for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the sound file .*speech.wav is empty \(0 bytes\)"),
        (b"RIFF....WAVE but no sound", r"the sound file .*speech.wav cannot be read: .*; give a WAV, FLAC or OGG file"),
        (None, r"the program is for causal-lm: --audio is for models of speech and sound; leave it out"),
    ],
)
def test_a_bad_file_and_a_model_of_text_are_refused_before_any_work(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speech.wav"
    if content is None:
        soundfile.write(file, CLIPS[2], RATE)
    else:
        file.write_bytes(content)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    assert main(["generate", str(tmp_path / "model"), "--backend", "ort_sim", "--audio", str(file)]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_a_checkpoint_without_a_processor_is_refused_before_it_is_exported(tmp_path: Path) -> None:
    speech_model("wav2vec2").save_pretrained(tmp_path / "model")
    model = QEFFAutoModel.from_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="the processor of .* cannot be loaded"):
        model.compile("ort_sim", seq_len=3200)


def test_frames_that_reach_into_padding_are_hidden_from_an_encoder_that_counts_them_itself() -> None:
    """Moonshine: its own mask shows frames of which only the first sample is real. Clips of two lengths, in one batch."""
    module = tiny_sound_model("moonshine", "speech-seq2seq", encoder_num_hidden_layers=1, decoder_num_hidden_layers=1)
    facts = check_speech_seq2seq(module, "ort_sim", {})
    assert facts["margin"] > 1e-3


def test_a_decoder_of_its_own_attention_does_not_see_padding_of_the_clip() -> None:
    """SpeechT5: its model gives the decoder no mask of the encoder's output, and its attention is not on the interface."""
    waves = {"num_feat_extract_layers": 1, "conv_dim": (8,), "conv_stride": (40,), "conv_kernel": (40,)}
    module = tiny_sound_model("speecht5", "speech-seq2seq", encoder_layers=2, decoder_layers=1, **waves)
    facts = check_speech_seq2seq(module, "ort_sim", {})
    assert facts["margin"] > 1e-3
