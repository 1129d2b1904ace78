from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from qeff_framework.errors import CheckpointError, InputError, OptionError
from qeff_framework.generation import GenerationSettings, load_generation_defaults, resolve_settings

CHECKPOINT = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.05,
    "eos_token_id": [2, 5],
    "pad_token_id": 1,
    "max_length": 9,
    "transformers_version": "4.40.0",
    "chat_format": "own",
}


def test_greedy_unless_the_caller_asks_for_sampling() -> None:
    settings = resolve_settings(CHECKPOINT)
    assert settings == GenerationSettings(eos_token_ids=(2, 5), pad_token_id=1)
    assert not settings.changes_scores


@pytest.mark.parametrize("asked", [{"do_sample": True}, {"generation_config": GenerationConfig(do_sample=True)}])
def test_sampling_takes_open_parameters_from_the_checkpoint(asked: dict[str, Any]) -> None:
    settings = resolve_settings(CHECKPOINT, **asked)
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.9)
    assert settings.repetition_penalty == 1.05
    assert settings.max_length is None, "the compiled context bounds the length, not the checkpoint"
    assert settings.top_k == GenerationConfig._get_default_generation_params()["top_k"]


def test_keywords_win_over_the_generation_config_and_that_over_the_checkpoint() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.7, top_k=3, eos_token_id=8)
    settings = resolve_settings(CHECKPOINT, config, temperature=0.8, generation_len=4)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.8, 3, 0.9)
    assert settings.eos_token_ids == (8,)
    assert settings.max_new_tokens == 4
    as_mapping = resolve_settings(CHECKPOINT, config.to_diff_dict(), temperature=0.8, generation_len=4)
    assert as_mapping == settings


def test_end_of_sequence_can_be_ignored() -> None:
    assert resolve_settings(CHECKPOINT, ignore_eos=True).eos_token_ids == ()
    forcing = {**CHECKPOINT, "forced_eos_token_id": 2}
    assert resolve_settings(forcing).forced_eos_token_ids == (2,)
    assert resolve_settings(forcing, ignore_eos=True).forced_eos_token_ids == ()
    assert resolve_settings(forcing, ignore_eos=True, forced_eos_token_id=7).forced_eos_token_ids == (7,)
    assert resolve_settings(CHECKPOINT, eos_token_id=7).eos_token_ids == (7,)
    assert resolve_settings({}).eos_token_ids == ()


def test_penalties_apply_to_greedy_decoding_when_they_are_given() -> None:
    settings = resolve_settings(CHECKPOINT, no_repeat_ngram_size=2)
    assert settings.no_repeat_ngram_size == 2
    assert settings.repetition_penalty == 1.0
    assert settings.changes_scores


def test_unused_values_of_the_checkpoint_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="qeff_framework"):
        resolve_settings(CHECKPOINT)
    assert "repetition_penalty, temperature, top_p" in caplog.text


def test_sampling_parameters_without_sampling(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OptionError, match=r"temperature=0\.5 has no effect.*do_sample=True"):
        resolve_settings({}, temperature=0.5)
    with caplog.at_level(logging.WARNING, logger="qeff_framework"):
        settings = resolve_settings({}, temperature=0.5, do_sample=False)
    assert "does not use temperature" in caplog.text
    assert settings == GenerationSettings()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_new_token": 3}, r"unknown keyword 'max_new_token', did you mean 'max_new_tokens'\?"),
        ({"zzz": 3}, r"unknown keyword 'zzz'; it takes .*temperature"),
        ({"generation_len": 3, "max_new_tokens": 4}, "contradicts"),
        ({"do_sample": True, "temperature": 0.0}, r"temperature=0\.0 must be a number above 0; for greedy decoding"),
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens=0 must be a whole number of at least 1"),
        ({"do_sample": True, "top_p": 1.5, "top_k": -1}, r"top_k=-1 must be.*top_p=1\.5 must be"),
        ({"generation_config": {"tempratur": 1}}, "did you mean 'temperature'"),
        ({"generation_config": 3}, "must be a transformers.GenerationConfig"),
    ],
)
def test_wrong_options_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve_settings({}, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 cannot be done"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2 cannot be done"),
        (
            {"generation_config": GenerationConfig(do_sample=True, num_return_sequences=2)},
            "give the prompt several times",
        ),
        ({"use_mtp": True}, "use prompt_lookup_num_tokens"),
        ({"generation_config": {"output_scores": True}}, "output_scores"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ({"generation_len": -3}, "max_new_tokens=-3 must be"),
    ],
)
def test_what_the_loop_cannot_do_is_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_settings({}, **keywords)


def test_harmless_values_of_those_modes_are_taken() -> None:
    assert resolve_settings({}, num_beams=1, num_return_sequences=1) == GenerationSettings()
    assert resolve_settings({}, GenerationConfig(num_beams=1, use_cache=True)) == GenerationSettings()


def test_every_field_of_a_generation_config_is_sorted() -> None:
    """A field that a new version of Transformers adds must be carried, refused or known to be harmless."""
    fields = [name for name in GenerationConfig().to_dict() if name != "transformers_version"]
    resolve_settings({}, dict.fromkeys(fields))


def test_the_checkpoints_file_is_read(tmp_path: Path) -> None:
    assert load_generation_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert load_generation_defaults(tmp_path) == {"eos_token_id": 3}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_generation_defaults(tmp_path)
