from __future__ import annotations

import inspect
import json
import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, GenerationMixin

from qeff_framework.errors import CheckpointError, InputError, OptionError
from qeff_framework.generation import SCORE_SETTINGS, GenerationSettings, load_generation_defaults, resolve_settings
from qeff_framework.generation.generation_config import UNDONE, WITHOUT_EFFECT

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
    expected = GenerationSettings(eos_token_ids=(2, 5), pad_token_id=1, repetition_penalty=1.05, max_length=9)
    assert settings == expected
    assert settings.limit_is_advice
    assert settings.score_settings == ("repetition_penalty",)
    assert resolve_settings({}).score_settings == ()


@pytest.mark.parametrize("asked", [{"do_sample": True}, {"generation_config": GenerationConfig(do_sample=True)}])
def test_sampling_takes_open_parameters_from_the_checkpoint(asked: dict[str, Any]) -> None:
    settings = resolve_settings(CHECKPOINT, **asked)
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.9)
    assert settings.repetition_penalty == 1.05
    assert (settings.max_length, settings.limit_is_advice) == (9, True)
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


def test_none_as_a_keyword_switches_off_what_the_checkpoint_says() -> None:
    off = resolve_settings(CHECKPOINT, repetition_penalty=None, eos_token_id=None, max_length=None)
    assert off == GenerationSettings(pad_token_id=1)
    assert resolve_settings(CHECKPOINT, GenerationConfig(repetition_penalty=None)).repetition_penalty == 1.05
    sampled = resolve_settings(CHECKPOINT, do_sample=True, top_k=None, temperature=None)
    assert (sampled.top_k, sampled.temperature, sampled.top_p) == (0, 1.0, 0.9)
    assert resolve_settings({"guidance_scale": 3.0}, guidance_scale=None) == GenerationSettings()


def test_lengths_settle_as_in_transformers(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = {"max_new_tokens": 7, "min_new_tokens": 3, "eos_token_id": 2}
    settings = resolve_settings(checkpoint, max_length=20, min_length=9)
    assert (settings.max_new_tokens, settings.max_length, settings.limit_is_advice) == (7, None, True)
    assert (settings.min_new_tokens, settings.min_length) == (3, 0)
    assert "max_length=20 does not count beside the checkpoint's max_new_tokens=7" in caplog.text
    assert "min_length=9 does not count" in caplog.text
    asked = resolve_settings({"max_length": 9}, max_new_tokens=30)
    assert (asked.max_new_tokens, asked.max_length, asked.limit_is_advice) == (30, None, False)


def test_padding_is_told_from_text_by_the_rule_of_transformers() -> None:
    assert resolve_settings(CHECKPOINT).padding_token_id == 1
    for ends in ({"eos_token_id": 1}, {"eos_token_id": [2, 1]}):
        assert resolve_settings(CHECKPOINT | ends).padding_token_id is None
        assert resolve_settings(CHECKPOINT | ends, ignore_eos=True).padding_token_id is None
    assert resolve_settings({"eos_token_id": 2}).padding_token_id is None


def test_the_checkpoints_sampling_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="qeff_framework"):
        resolve_settings(CHECKPOINT)
    assert "recommends sampling: pass do_sample=True; temperature, top_p are used only with it" in caplog.text


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
        ({"do_sample": True, "temperature": 0.0}, r"temperature=0\.0 must be a number above 0.*; for greedy decoding"),
        # What leaves the range of float32 would end as a fault of the program.
        ({"do_sample": True, "temperature": 1e-320}, "temperature=1e-320 must be a number above 0, from 1e-30"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature=inf must be"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty=1e-320 must be"),
        ({"sequence_bias": [[[5], 1e300]]}, "sequence_bias=.* from -1e30 to 1e30"),
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
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups=2 cannot be done"),
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


def test_a_wrong_value_of_the_checkpoint_is_told_as_its_own() -> None:
    for name, value in (("eos_token_id", "12"), ("repetition_penalty", "1.2")):
        with pytest.raises(OptionError, match=f"{name}=.*the checkpoint's generation config says so.*pass {name}"):
            resolve_settings({name: value})
        resolve_settings({name: value}, **{name: None})
    for asked in ({"forced_eos_token_id": -3}, {"exponential_decay_length_penalty": 6.5}):
        with pytest.raises(OptionError) as caught:
            resolve_settings({"eos_token_id": 2}, **asked)
        assert "checkpoint" not in str(caught.value), "the caller has given the value"


def test_a_minimum_above_the_limit_is_told() -> None:
    told: list[str] = []
    resolve_settings({}, min_new_tokens=9, max_new_tokens=4, warn=told.append)
    resolve_settings({}, min_new_tokens=4, max_new_tokens=4, warn=told.append)
    assert told == ["min_new_tokens=9 cannot be reached: the text ends at max_new_tokens=4"]


def test_other_searches_of_the_checkpoint_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = {"penalty_alpha": 0.6, "force_words_ids": [[5]]}
    assert resolve_settings(checkpoint) == GenerationSettings()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "asks for force_words_ids=[[5]], penalty_alpha=0.6, which is not done (beam search under" in caplog.text
    assert "pass force_words_ids=None, penalty_alpha=0 to leave this warning out" in caplog.text
    caplog.clear()
    resolve_settings(checkpoint, force_words_ids=None, penalty_alpha=0)
    assert caplog.text == ""


def test_beams_of_the_checkpoint_hold_unless_one_is_asked_for() -> None:
    checkpoint = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2}
    settings = resolve_settings(checkpoint)
    assert {name: getattr(settings, name) for name in checkpoint} == checkpoint
    assert resolve_settings(checkpoint, num_beams=1) == GenerationSettings()
    assert resolve_settings({}, GenerationConfig(num_beams=2)).num_beams == 2
    with pytest.raises(OptionError, match=r"length_penalty=2\.0 has no effect without beam search"):
        resolve_settings({}, length_penalty=2.0)
    with pytest.raises(OptionError, match='early_stopping=3 must be True, False or "never"'):
        resolve_settings({}, num_beams=2, early_stopping=3)


@pytest.mark.parametrize("rule", [{"guidance_scale": 3.0}, {"token_healing": True}, {"dola_layers": "high"}])
def test_rules_of_the_checkpoint_without_which_the_tokens_are_wrong_are_refused(rule: dict[str, Any]) -> None:
    (name,) = rule
    with pytest.raises(InputError, match=f"the checkpoint's generation config says {name}=.*pass {name}=None"):
        resolve_settings(rule)
    assert resolve_settings(rule, **{name: None}) == GenerationSettings()


def test_harmless_values_of_those_modes_are_taken() -> None:
    assert resolve_settings({}, num_beams=1, num_return_sequences=1) == GenerationSettings()
    assert resolve_settings({}, GenerationConfig(num_beams=1, use_cache=True)) == GenerationSettings()
    # As keywords of scripts that call Transformers' ``generate`` as well.
    assert resolve_settings({}, use_cache=False, cache_implementation="static", bos_token_id=1) == GenerationSettings()


def test_every_field_of_a_generation_config_has_its_place() -> None:
    """A field that a new version of Transformers adds must be a setting, refused, or known to change no token."""
    # Attributes with an underscore are the object's own bookkeeping, set by `generate` itself.
    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    settings = {"eos_token_id", *(field.name for field in fields(GenerationSettings))}
    places = (settings, set(UNDONE), set(WITHOUT_EFFECT))
    assert {name: sum(name in place for place in places) for name in theirs} == dict.fromkeys(theirs, 1)


def test_every_rule_of_transformers_has_its_place() -> None:
    """Each processor that Transformers' ``generate`` builds from its config stands for a setting here."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    read = set(re.findall(r"generation_config\.([a-z]\w*)", source))
    bookkeeping = {"do_sample", "max_length", "num_beams", "num_return_sequences", "use_cache"}
    assert read - bookkeeping - set(SCORE_SETTINGS) == {"guidance_scale"}
    own = {"presence_penalty", "frequency_penalty", "json_schema", "regex"}
    assert set(SCORE_SETTINGS) - own <= read


def test_the_checkpoints_file_is_read(tmp_path: Path) -> None:
    assert load_generation_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert load_generation_defaults(tmp_path) == {"eos_token_id": 3}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_generation_defaults(tmp_path)
