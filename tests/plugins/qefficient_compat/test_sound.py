"""Scripts of sound: Whisper and CTC, from folders and from modules, with what a processor returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from QEfficient import QEFFAutoModelForCTC, QEFFAutoModelForSpeechSeq2Seq
from tests.sound_models import RATE, START, clip, speech_model, speech_processor, whisper, whisper_extractor

NEW = 8


def test_whisper(tmp_path: Path) -> None:
    module = whisper()
    module.save_pretrained(tmp_path)
    whisper_extractor().save_pretrained(tmp_path)
    features = whisper_extractor()(clip(3, 3), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        wanted = module.generate(input_features=features["input_features"], max_new_tokens=NEW)[0].tolist()
    model = QEFFAutoModelForSpeechSeq2Seq.from_pretrained(str(tmp_path))
    model.compile(ctx_len=64, batch_size=2, num_cores=2, num_devices=1, prefill_seq_len=1)
    put: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            put.extend(value.tolist())

        def end(self) -> None:
            put.append(-1)

    info = model.generate(
        inputs={**features, "decoder_input_ids": torch.tensor([[START]])},
        generation_len=NEW,
        streamer=Streamer(),
        device_ids=[0],
    )
    assert len(set(wanted)) > 4
    assert info.generated_ids.tolist() == [[START, *wanted]]
    assert put == [*wanted, -1]
    assert info.perf_metrics.decode_perf > 0


def test_ctc(tmp_path: Path) -> None:
    module = speech_model("wav2vec2", feat_extract_norm="group")
    processor = speech_processor(tmp_path / "processor")
    clips = [clip(0.2, seed) for seed in range(2)]
    inputs = processor(clips[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        wanted = processor.decode(module(inputs["input_values"]).logits[0].argmax(-1))
    model = QEFFAutoModelForCTC(module, processor=processor)
    model.compile(seq_len=[3200, 6000], batch_size=2, num_cores=2)
    assert model.generate(processor, inputs=clips[0]) == [wanted]
    assert model.generate(processor, np.stack(clips), device_ids=[0])[0] == wanted
