"""Segments of a window: those of Transformers for random answers."""

from __future__ import annotations

import numpy as np
import torch
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from qeff_framework.speech.segments import segments_of
from qeff_framework.speech.start_tokens import SpeechFacts

_BEGIN = 15


def test_as_transformers() -> None:
    random = np.random.default_rng(0)
    facts = SpeechFacts.of({"no_timestamps_token_id": _BEGIN - 1}, {}, {})
    for _ in range(300):
        tokens = [int(random.choice([1, 2, _BEGIN + 20 + index])) for index in range(random.integers(1, 12))]
        seek, frames = int(random.integers(0, 4000)), int(random.integers(10, 3001))
        wanted, moved = WhisperGenerationMixin._retrieve_segment(
            seek_sequence=torch.tensor(tokens),
            seek_outputs=[{}],
            time_offset=torch.tensor([seek], dtype=torch.float64) * 0.02 / 2,
            timestamp_begin=_BEGIN,
            seek_num_frames=torch.tensor([frames]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 3),
        )
        found, found_moved = segments_of(tokens, facts, seek=seek, frames=frames, stride=2)
        assert found_moved == int(moved)
        assert [part.tokens for part in found] == [part["tokens"].tolist() for part in wanted]
        times = [[float(part["start"]), float(part["end"])] for part in wanted]
        np.testing.assert_allclose([[part.start, part.end] for part in found], times, atol=1e-9)
