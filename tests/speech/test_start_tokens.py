"""Start tokens: those of Transformers for every way to ask for a language and a task."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, WhisperConfig
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from qeff_framework.errors import InputError
from qeff_framework.speech.start_tokens import SpeechFacts, StartTokens
from tests.sound_models import LANGUAGES, NO_TIMES, START, TASKS

_FORCED = ([], [[1, 52], [2, 55]], [[1, None], [2, 55]], [[1, None], [2, 54], [3, NO_TIMES]])
_DETECTED = LANGUAGES["<|de|>"]


class _Detecting(WhisperGenerationMixin):
    """Transformers' rules, with a language that is always found."""

    device = torch.device("cpu")

    def detect_language(self, **_given: Any) -> torch.Tensor:
        return torch.tensor([_DETECTED])


@pytest.mark.parametrize("multilingual", [True, False])
def test_as_transformers(*, multilingual: bool) -> None:
    known: dict[str, Any] = {"lang_to_id": LANGUAGES, "task_to_id": TASKS} if multilingual else {}
    languages = ("en", "<|de|>", None) if multilingual else (None,)
    tasks = (*TASKS, None) if multilingual else (None,)
    for forced, language, task, timestamps in itertools.product(_FORCED, languages, tasks, (True, False)):
        content = {"forced_decoder_ids": forced or None, "no_timestamps_token_id": NO_TIMES, **known}
        config = GenerationConfig(decoder_start_token_id=START, **content)
        for name, value in (("language", language), ("task", task), ("return_timestamps", timestamps)):
            setattr(config, name, value)
        (wanted,) = (
            _Detecting()
            ._retrieve_init_tokens(
                None, batch_size=1, generation_config=config, config=WhisperConfig(), num_segment_frames=1, kwargs={}
            )
            .tolist()
        )
        facts = SpeechFacts.of(content, {}, {})
        start = StartTokens.of(START, facts, language=language, task=task, timestamps=timestamps)
        assert start.with_language(_DETECTED) == wanted, (forced, language, task, timestamps)


def test_a_position_that_is_left_out() -> None:
    facts = SpeechFacts.of({"forced_decoder_ids": [[2, 52]]}, {}, {})
    with pytest.raises(InputError, match="name position 2 where 1 should be"):
        StartTokens.of(START, facts, language=None, task=None, timestamps=False)
