"""A tiny random Whisper through `ort_sim`: tokens and times of Transformers for clips of one window and of several."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qeff_framework import QEFFAutoModel, QEFFAutoModelForSpeechSeq2Seq, load_compiled
from qeff_framework.errors import InputError
from qeff_framework.runtime.speech import CompiledSpeechSeq2Seq
from qeff_framework.speech.segments import Segment
from tests.serving.running import serving
from tests.sound_models import LANGUAGES, PREVIOUS, RATE, clip, whisper, whisper_extractor, whisper_processor

NEW_TOKENS = 16
SECONDS = (3, 31, 65)


@pytest.fixture(scope="module")
def module() -> PreTrainedModel:
    return whisper()


@pytest.fixture(scope="module")
def program(
    module: PreTrainedModel, session_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CompiledSpeechSeq2Seq]:
    folder = tmp_path_factory.mktemp("whisper")
    for part in (module, whisper_processor()):
        part.save_pretrained(folder)
    model = QEFFAutoModel.from_pretrained(folder)
    assert isinstance(model, QEFFAutoModelForSpeechSeq2Seq)
    compiled = model.compile("ort_sim", ctx_len=64, batch_size=2)
    with load_compiled(compiled.directory) as runner:
        assert isinstance(runner, CompiledSpeechSeq2Seq)
        yield runner


def _reference(module: PreTrainedModel, seconds: int, **settings: Any) -> dict[str, Any]:
    """What Transformers makes of a clip alone."""
    long = {"truncation": False, "padding": "longest", "return_attention_mask": True} if seconds > 30 else {}
    made = whisper_extractor()(clip(seconds, seconds), sampling_rate=RATE, return_tensors="pt", **long)
    if long:
        settings["return_timestamps"] = True
    if "prompt_ids" in settings:
        settings["prompt_ids"] = torch.tensor(settings["prompt_ids"])
    if "max_length" not in settings:
        settings["max_new_tokens"] = NEW_TOKENS
    found: dict[str, Any] = module.generate(input_features=made["input_features"], return_segments=True, **settings)
    return found


#: Greedy first; at each other temperature the likeliest token is the only one, so that Transformers draws the same.
_FALLBACK: dict[str, Any] = {"temperature": (0.0, 0.4, 0.8), "top_k": 1}
_PROMPT = [PREVIOUS, 5, 6, 7]


@pytest.mark.parametrize(
    ("clips", "settings"),
    [
        (SECONDS[:1], {}),
        (SECONDS, {}),
        (SECONDS, {"language": "german"}),
        (SECONDS, {"prompt_ids": _PROMPT, "condition_on_prev_tokens": True}),
        # Some answers of the first temperature pass, and some do not.
        (
            SECONDS,
            {
                **_FALLBACK,
                "logprob_threshold": -1.2,
                "prompt_ids": _PROMPT,
                "condition_on_prev_tokens": True,
                "prompt_condition_type": "all-segments",
            },
        ),
        (SECONDS[:2], {**_FALLBACK, "compression_ratio_threshold": 0.9, "prompt_ids": _PROMPT}),
        (SECONDS, {**_FALLBACK, "logprob_threshold": -1.2, "no_speech_threshold": 4.5e-6}),
        (SECONDS, {"num_beams": 2, "length_penalty": 0.4}),
    ],
)
def test_clips_of_one_window_and_of_several(
    module: PreTrainedModel, program: CompiledSpeechSeq2Seq, clips: Sequence[int], settings: dict[str, Any]
) -> None:
    inputs = program.prepared([clip(seconds, seconds) for seconds in clips], sampling_rate=RATE)
    # Clips of one call that are read by time stamps make all of them so.
    given = settings if len(clips) == 1 else {**settings, "return_timestamps": True}
    found = program.generate(inputs, max_new_tokens=NEW_TOKENS, **given)
    for number, seconds in enumerate(clips):
        wanted = _reference(module, seconds, **given)
        assert found.generated_ids[number] == wanted["sequences"][0].tolist()
        (segments,) = wanted["segments"]
        times = [(float(segment["start"]), float(segment["end"])) for segment in segments]
        np.testing.assert_allclose([(part.start, part.end) for part in found.segments[number]], times)
        assert found.language_ids[number] in LANGUAGES.values()
    if "num_beams" in settings:
        greedy = program.generate(inputs, max_new_tokens=NEW_TOKENS, return_timestamps=True)
        assert found.generated_ids != greedy.generated_ids
    parts = [part for of_clip in found.segments for part in of_clip]
    assert len({part.temperature for part in parts}) == (2 if "temperature" in settings else 1)
    # The last window of the longest clip is silence by that threshold.
    assert "no_speech_threshold" not in settings or max(part.seek for part in parts) < 2 * 2900


def test_texts_while_they_are_written_down(program: CompiledSpeechSeq2Seq, capsys: pytest.CaptureFixture[str]) -> None:
    """Window after window of one clip; of several, each text when its clip has been read."""
    told: list[tuple[int, Segment]] = []
    long = program.prepared(clip(65, 65))
    found = program.generate(
        long, max_new_tokens=NEW_TOKENS, stream=True, on_segment=lambda number, part: told.append((number, part))
    )
    assert capsys.readouterr().out == f"{found.generated_texts[0]}\n"
    assert told == [(0, part) for part in found.segments[0]]
    several = program.prepared([clip(seconds, seconds) for seconds in SECONDS])
    found = program.generate(several, max_new_tokens=NEW_TOKENS, stream=True)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"[{number}] {text}" for number, text in enumerate(found.generated_texts)
    ]


@pytest.mark.parametrize("settings", [{}, {"condition_on_prev_tokens": True}])
def test_the_greatest_length_grows_with_each_window(
    module: PreTrainedModel, program: CompiledSpeechSeq2Seq, settings: dict[str, Any]
) -> None:
    found = program.generate(program.prepared(clip(65, 65)), max_length=6, **settings)
    assert found.generated_ids == [_reference(module, 65, max_length=6, **settings)["sequences"][0].tolist()]


def test_a_task_begins_the_answer(module: PreTrainedModel, program: CompiledSpeechSeq2Seq) -> None:
    settings: dict[str, Any] = {"language": "de", "task": "translate"}
    found = program.generate(program.prepared(clip(3, 3)), max_new_tokens=NEW_TOKENS, **settings)
    assert found.generated_ids == [_reference(module, 3, **settings)["sequences"][0].tolist()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "klingon"}, "does not know the language 'klingon'; it knows de, en"),
        ({"language": ["de", "en"]}, r"language=\['de', 'en'\] must be one text, for all clips of the call"),
        ({"task": 1}, "task=1 must be one text"),
        ({"return_token_timestamps": True}, "times of single words are read from the decoder's attention"),
        ({"task": "summarize"}, "does not know the task 'summarize'; it knows transcribe, translate"),
        ({"return_timestamps": False}, "a clip is longer than the window"),
        ({"max_new_tokens": 100}, "more than the compiled ctx_len=64; ask for at most 62"),
        ({"do_sample": True}, "do_sample=True needs a temperature"),
        ({"temperature": -1}, "temperature=-1 must be a number of at least 0"),
        ({"num_beams": 3}, "each answer takes 3 rows, and the program computes 2 at once; compile with batch_size=3"),
        ({"num_beams": 2, "num_return_sequences": 2}, "num_return_sequences cannot be honoured"),
        ({"stop_strings": ["a"], "max_time": 2.0}, "stop_strings, max_time cannot be honoured"),
        ({"no_speech_threshold": 0.6}, "counts only for answers below logprob_threshold"),
        ({"prompt_ids": [1, 1_000_000]}, "prompt_ids must be a row of token ids from 0 to 1557"),
        ({"prompt_ids": [5] * 62}, "62 tokens of context and 2 start tokens leave no room in the compiled ctx_len=64"),
        ({"prompt_condition_type": "all-segments"}, "needs condition_on_prev_tokens=True"),
    ],
)
def test_what_cannot_be_done_is_said(program: CompiledSpeechSeq2Seq, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        program.generate(input_features=np.zeros((1, 8, 3100), np.float32), **settings)
    for given in (np.zeros(16_000, np.float32), "speech.wav"):
        with pytest.raises(InputError, match=f"a mapping with input_features; got {type(given).__name__}"):
            program.generate(given)


def test_an_artifact_runs_without_torch_and_transformers(program: CompiledSpeechSeq2Seq) -> None:
    features = np.asarray(program.prepared(clip(3, 3))["input_features"])
    wanted = program.generate(input_features=features, max_new_tokens=4).generated_ids
    file = program.compiled.directory.parent / "features.npy"
    np.save(file, features)
    script = (
        "import sys, numpy\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from qeff_framework import load_compiled\n"
        f"with load_compiled({str(program.compiled.directory)!r}) as program:\n"
        f"    found = program.generate(input_features=numpy.load({str(file)!r}), max_new_tokens=4)\n"
        "print(found.generated_ids)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(wanted)


def wav(samples: NDArray[np.float32], rate: int = RATE, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


def test_openais_client_gets_texts_and_times(program: CompiledSpeechSeq2Seq) -> None:
    """`generate` of the same program says what is right."""
    # As they are read from a file of 16 bits.
    short, long = (soundfile.read(io.BytesIO(wav(clip(seconds, seconds))), dtype="float32")[0] for seconds in (3, 31))
    wanted = program.generate(program.prepared(short))
    known: dict[str, Any] = {"language": "de", "task": "transcribe"}
    timed = program.generate(program.prepared(long), return_timestamps=True, **known)
    prompted = program.generate(program.prepared(short), prompt_ids=program.prompt_ids("ab"), **known)
    translated = program.generate(program.prepared(short), task="translate")
    with serving(load_compiled(program.compiled.directory)) as served:
        hear, translate = served.client.audio.transcriptions.create, served.client.audio.translations.create
        for form in ("WAV", "FLAC"):
            found = hear(model="tiny", file=(f"a.{form.lower()}", wav(short, form=form)))
            assert found.text == wanted.generated_texts[0]
        assert hear(model="tiny", file=("a.wav", wav(short)), response_format="text").strip() == found.text
        with pytest.deprecated_call():
            assert translate(model="tiny", file=("a.wav", wav(short))).text == translated.generated_texts[0]
        # Fewer samples than one frame of the spectrogram has.
        assert isinstance(hear(model="tiny", file=("a.wav", wav(short[:60]))).text, str)
        asked: Any = {"model": "tiny", "file": ("b.wav", wav(long)), "language": "de"}
        verbose = hear(**asked, response_format="verbose_json", timestamp_granularities=["segment"], temperature=0)
        assert verbose.language == "german"
        assert verbose.duration == 31
        assert verbose.segments is not None
        assert [(part.text, part.tokens) for part in verbose.segments] == [
            (part.text, part.tokens) for part in timed.segments[0]
        ]
        np.testing.assert_allclose(
            [(part.start, part.end) for part in verbose.segments],
            [(part.start, part.end) for part in timed.segments[0]],
            atol=1e-3,
        )
        for part, heard in zip(verbose.segments, timed.segments[0], strict=True):
            measured = (heard.avg_logprob, heard.no_speech_prob, heard.temperature, heard.seek)
            assert (part.avg_logprob, part.no_speech_prob, part.temperature, part.seek) == measured
            assert part.compression_ratio == len(heard.text) / len(zlib.compress(heard.text.encode()))
        asked["file"] = ("a.wav", wav(short))
        assert hear(**asked, prompt="ab").text == prompted.generated_texts[0] != wanted.generated_texts[0]
        assert hear(**asked, response_format="srt").startswith("1\n00:00:0")
        assert hear(**asked, response_format="vtt").startswith("WEBVTT\n\n00:00:0")
        refused: list[tuple[dict[str, Any], str]] = [
            ({"file": ("a.wav", b"RIFFnonsense")}, "a.wav cannot be read"),
            ({"file": ("a.wav", b"")}, "is empty"),
            ({"language": "klingon"}, "does not know the language 'klingon'"),
            ({"prompt": "a" * 70}, "72 tokens of context and 4 start tokens leave no room"),
            ({"temperature": 2}, "temperature: Input should be less than or equal to 1"),
            ({"timestamp_granularities": ["word"]}, "Input should be 'segment'"),
            ({"stream": True}, "stream: Input should be False"),
            ({"extra_body": {"best_of": 2}}, "best_of: Extra inputs are not permitted"),
        ]
        for change, message in refused:
            with pytest.raises(openai.BadRequestError, match=message):
                hear(**{**asked, **change})
        with pytest.raises(openai.NotFoundError, match="not served here"):
            hear(model="x", file=("a.wav", wav(short)))
        status, _, answer = served.send("POST", "/v1/audio/transcriptions", {"model": "tiny"})
        assert (status, answer["error"]["param"]) == (400, "file")
        torn = {"content-type": "multipart/form-data; boundary=x"}
        assert served.send("POST", "/v1/audio/transcriptions", b"--x\r\nnonsense", torn)[0] == 400
        other = {"content-type": "application/x-www-form-urlencoded"}
        assert served.send("POST", "/v1/audio/transcriptions", b"model=tiny&file=a", other)[0] == 400
        assert served.send("POST", "/v1/audio/transcriptions", b"model=x", other)[0] == 404
