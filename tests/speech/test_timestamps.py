"""The rule for time stamps: the scores of Transformers' processor for random texts."""

from __future__ import annotations

import numpy as np
import torch
from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

from qeff_framework.generation.rows import Row
from qeff_framework.speech.start_tokens import SpeechFacts
from qeff_framework.speech.timestamps import Timestamps

_END, _NO_TIMES, _VOCABULARY = 10, 14, 60


def test_as_transformers() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        limit = random.choice([None, 3])
        content = {"no_timestamps_token_id": _NO_TIMES, "max_initial_timestamp_index": limit}
        config = GenerationConfig(eos_token_id=_END, **content)
        facts = SpeechFacts.of(content, {}, {})
        times = np.sort(random.integers(_NO_TIMES + 1, _VOCABULARY, 4))
        choices = [random.integers(0, _END), times[0], times[1], times[2]]
        answer = [int(random.choice(choices)) for _ in range(random.integers(0, 6))]
        scores = random.normal(scale=3, size=_VOCABULARY).astype(np.float32)
        prompt = [11, 12]
        processor = WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt))
        wanted = processor(torch.tensor([prompt + answer]), torch.tensor(scores)[None])[0].numpy()
        row = Row(index=0, prompt=prompt, limit=9)
        row.generated = answer
        Timestamps(facts, _NO_TIMES + 1, _END)(row, scores)
        np.testing.assert_array_equal(scores, wanted, err_msg=str(answer))
