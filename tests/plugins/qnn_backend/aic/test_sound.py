"""Scores of a clip's frames through stand-in QAIRT tools, and on the stand-in's card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModelForCTC
from tests.sound_models import clip, speech_model, speech_processor

pytestmark = pytest.mark.usefixtures("session_store")


def test_standin_scores_of_frames(standin_qairt, standin_card, tmp_path: Path) -> None:
    """How many frames there are is said by no input: the graph must hold the number."""
    standin_qairt()
    standin_card()
    module = speech_model("wav2vec2", feat_extract_norm="group")
    model = QEFFAutoModelForCTC(module, processor=speech_processor(tmp_path / "processor"))
    model.compile("qnn", target="aic", num_cores=8, seq_len=6000, batch_size=2)
    inputs = model.processor([clip(0.31), clip(0.2, 1)], sampling_rate=16_000, return_tensors="np", padding=True)
    with model.load() as program:
        logits, lengths = program.generate(**inputs)
    for number, length in enumerate(lengths):
        samples = torch.tensor(inputs["input_values"][number][: int(inputs["attention_mask"][number].sum())])
        with torch.no_grad():
            wanted = module(samples[None]).logits[0].numpy()
        assert length == len(wanted)
        np.testing.assert_allclose(logits[number, :length], wanted, atol=2e-2 * np.abs(wanted).max())  # float16
