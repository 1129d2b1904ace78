"""What ``generate`` of a loaded program takes, without a backend."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qeff_framework.errors import InputError, OptionError
from qeff_framework.runtime import CompiledCausalLM, CompiledEncoder, load_compiled
from qeff_framework.runtime.text_generation import generation_defaults
from tests.generation.fakes import FakeCausalLM, FakeEncoder
from tests.tokenizer_folders import byte_level_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}{{ mood }}"
USER = {"role": "user", "content": "The fox"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the generation of a program reads of its artifact."""
    directory = tmp_path_factory.mktemp("artifact")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(directory / "tokenizer")
    (directory / "generation_config.json").write_text(json.dumps({"pad_token_id": 2, "eos_token_id": 1}))
    return directory


def program(directory: Path) -> CompiledCausalLM:
    session = FakeCausalLM(batch_size=2, prefill=8, ctx_len=64, vocab=330)
    session.compiled = replace(session.compiled, directory=directory)
    return CompiledCausalLM(session)


@pytest.mark.parametrize("path", [None, 3, b"artifact"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InputError, match=f"a {type(path).__name__} was given"):
        load_compiled(path)


def test_tokenizer_output_may_be_given_in_every_way(artifact: Path) -> None:
    tokenizer, runner = AutoTokenizer.from_pretrained(artifact / "tokenizer"), program(artifact)
    inputs = tokenizer(["The fox", "It's what they don't say"], padding=True, return_tensors="pt")
    rows = [tokenizer.encode(text) for text in ("The fox", "It's what they don't say")]
    expected = runner.generate(prompts=rows, generation_len=5).generated_ids
    ids = inputs["input_ids"]
    for positional, keywords in [
        ((inputs,), {}),
        ((), dict(inputs)),
        ((tokenizer,), dict(inputs)),
        ((), {"inputs": inputs}),
        ((tokenizer,), {"inputs": inputs}),
        ((), {"inputs": ids}),
        ((ids,), {}),
        ((), {"input_ids": ids}),
        ((), {"prompts": inputs}),
    ]:
        assert runner.generate(*positional, generation_len=5, **keywords).generated_ids == expected


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({}, InputError, "nothing to generate from was given; give either prompts="),
        ({"prompts": ["a"], "inputs": [[1]]}, InputError, "prompts and inputs were given; give either"),
        ({"prompts": ["a"], "attention_mask": [[1]]}, InputError, "prompts and attention_mask were given"),
        ({"attention_mask": [[1]]}, InputError, "the inputs hold attention_mask, but no input_ids"),
        ({"prompts": ["a"], "position_ids": [[0]]}, InputError, "position_ids cannot be done on a compiled program"),
        ({"prompts": ["a"], "input_id": [[0]]}, OptionError, "unknown keyword 'input_id'"),
        ({"prompts": ["a"], "tools": []}, OptionError, "tools is for prompts that are conversations"),
    ],
)
def test_what_was_given_is_told_from_what_was_not(
    artifact: Path, keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        program(artifact).generate(**keywords)


def test_conversations_are_rendered_with_the_artifacts_template(artifact: Path) -> None:
    runner = program(artifact)
    output = runner.generate(prompts=[[USER], [USER, {"role": "assistant", "content": "jumps"}]], generation_len=2)
    assert output.prompts == ["<bos>[user]The fox>", "<bos>[user]The fox[assistant]jumps"]
    asked = {"add_generation_prompt": False, "chat_template_kwargs": {"mood": "!"}}
    assert runner.generate([USER], generation_len=2, **asked).prompts == ["<bos>[user]The fox!"]
    text = runner.generate(prompts="<bos>[user]The fox>", generation_len=2)
    assert text.generated_ids == output.generated_ids[:1]
    assert text.prompt_lengths == output.prompt_lengths[:1]


def test_what_the_artifact_says_about_generation_holds_unless_it_is_switched_off(
    artifact: Path, tmp_path: Path
) -> None:
    free = program(artifact).generate(prompts=["The fox"], generation_len=5).generated_ids[0]
    shutil.copytree(artifact, tmp_path / "ruled")
    rules = {"suppress_tokens": [free[0]], "max_new_tokens": 3, "num_beams": 4}
    (tmp_path / "ruled" / "generation_config.json").write_text(json.dumps(rules))
    runner = program(tmp_path / "ruled")
    with pytest.raises(InputError, match="num_beams=4: the search takes 4 rows.*batch_size=4; num_beams=1 takes"):
        runner.generate(prompts=["The fox"])
    ruled = runner.generate(prompts=["The fox"], num_beams=1).generated_ids[0]
    assert len(ruled) == 3
    assert ruled[0] != free[0]
    off = runner.generate(prompts=["The fox"], suppress_tokens=None, max_new_tokens=None, num_beams=1)
    assert off.generated_ids[0][:5] == free
    assert len(off.generated_ids[0]) > 5


def test_what_ends_a_text_is_what_transformers_reads(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its generation config alone; the config's and the tokenizer's ids only where there is none."""
    directory = shutil.copytree(artifact, tmp_path / "artifact")
    first = program(directory).generate(prompts=["The fox"], generation_len=4).generated_ids[0][0]
    (directory / "config.json").write_text(json.dumps({"eos_token_id": first, "forced_eos_token_id": 7}))
    (directory / "generation_config.json").write_text("{}")
    runner = program(directory)
    for _ in range(2):
        ids = runner.generate(prompts=["The fox"], generation_len=4).generated_ids[0]
        assert (len(ids), ids[0]) == (4, first)
        assert ids[-1] != 7
    assert caplog.text.count("names no end of sequence") == 1
    (directory / "generation_config.json").unlink()
    assert program(directory).generate(prompts=["The fox"], generation_len=4).generated_ids == [[first]]


def test_encoders_take_tokenizer_output_as_keywords_too() -> None:
    runner = CompiledEncoder(FakeEncoder())
    inputs = {"input_ids": [[4, 5, 6], [9, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    np.testing.assert_array_equal(runner.generate(**inputs), runner.generate(inputs))
    with pytest.raises(InputError, match="no inputs were given"):
        runner.generate()
    with pytest.raises(InputError, match="inputs and attention_mask were given"):
        runner.generate(inputs, attention_mask=[[1]])


@pytest.mark.parametrize(
    ("stated", "start"), [({}, 5), ({"bos_token_id": 1}, None), ({"decoder_start_token_id": 4}, 4), (None, 5)]
)
def test_the_start_of_a_decoder_is_that_of_the_generation_config(
    stated: dict[str, int] | None, start: int | None, tmp_path: Path
) -> None:
    """As in Transformers, whose generate takes a ``bos_token_id`` of that file and does not look at the model's config."""
    (tmp_path / "config.json").write_text(json.dumps({"decoder_start_token_id": 5}))
    if stated is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    assert generation_defaults(tmp_path).get("decoder_start_token_id") == start
