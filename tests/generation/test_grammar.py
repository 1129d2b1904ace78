"""Answers that follow a schema or an expression: against all texts of a small language, token by token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework.errors import InputError, OptionError
from qeff_framework.generation import TextGenerator
from qeff_framework.generation.grammar import schema_text
from qeff_framework.serving import Engine
from qeff_framework.tokenization.tokenizer import load_tokenizer
from tests.generation.fakes import FakeCausalLM, next_logits
from tests.serving.programs import VOCAB, program, write_artifact

EXPRESSION = "(yes|not the fox|nö|maybe [0-9]{2})"
LANGUAGE = [word.encode() for word in ("yes", "not the fox", "nö", *(f"maybe {n:02}" for n in range(100)))]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["fox", "dog"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}
EOS = 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("guided"))


@pytest.fixture(scope="module")
def generator(directory: Path) -> TextGenerator:
    return program(directory).text_generator()


def check_answer(prompt: Sequence[int], answer: Sequence[int], tokens: dict[int, bytes]) -> int:
    """Compares an answer with the texts of `LANGUAGE`; returns how many tokens the model has chosen.

    Each token keeps a text possible. Where texts differ in their next byte it is the most likely one of those; where they do not,
    the grammar library chooses how to cut the text that must follow into tokens.
    """
    chosen = 0
    assert answer[-1] == EOS
    for number, token in enumerate(answer):
        text = b"".join(tokens[before] for before in answer[:number])
        words = [word for word in LANGUAGE if word.startswith(text)]
        allowed = {one for one, more in tokens.items() if any(word.startswith(text + more) for word in words)}
        allowed |= {EOS} if text in LANGUAGE else set()
        assert token in allowed
        if len({word[len(text) : len(text) + 1] for word in words}) > 1:
            scores = next_logits([*prompt, *answer[:number]], VOCAB)
            assert token == max(allowed, key=lambda one: (scores[one], -one))
            chosen += 1
    return chosen


def test_the_answer_is_the_best_one_of_the_language(generator: TextGenerator) -> None:
    characters = {bytes([b]): c for b, c in zip(range(33, 127), map(chr, range(33, 127)), strict=True)}
    assert generator.tokenizer is not None
    table = {"Ġ": b" ", "Ã": b"\xc3", "¶": b"\xb6", **{c: b for b, c in characters.items()}}
    tokens = {
        token: b"".join(table[character] for character in text)
        for text, token in generator.tokenizer.vocabulary().items()
        if token > 2 and all(character in table for character in text)
    }
    prompts = [[0, 40 + number, 9] for number in range(12)]
    answers = [
        answer
        for pair in zip(prompts[::2], prompts[1::2], strict=True)
        for answer in generator.generate(pair, regex=EXPRESSION, max_new_tokens=40).generated_ids
    ]
    assert sum(check_answer(*pair, tokens) for pair in zip(prompts, answers, strict=True)) > 20
    assert len({tuple(answer) for answer in answers}) > 4
    sampled = [
        generator.generate(prompts[0], regex=EXPRESSION, do_sample=True, temperature=60.0, seed=seed, max_new_tokens=40)
        for seed in range(8)
    ]
    texts = {output.generated_texts[0] for output in sampled}
    assert len(texts) > 2
    assert all(re.fullmatch(EXPRESSION, text) for text in texts)


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_an_answer_follows_its_schema_and_its_neighbours_are_left_alone(directory: Path, schema: Any) -> None:
    engine = Engine(program(directory, lanes=3, slots=3))
    generator = program(directory).text_generator()
    free = generator.generate("The fox", max_new_tokens=9).generated_texts[0]
    requests = [
        engine.add("The fox", json_schema=schema, do_sample=True, seed=seed, max_new_tokens=99) for seed in (1, 2)
    ]
    neighbour = engine.add("The fox", max_new_tokens=9)
    for request in requests:
        answer = json.loads("".join(piece.text for piece in engine.stream(request)))
        assert list(answer) == ["name", "size", "kind"]
        assert len(answer["name"]) <= 6
        assert answer["size"] in range(100)
        assert answer["kind"] in ("fox", "dog")
    assert "".join(piece.text for piece in engine.stream(neighbour)) == free


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"regex": "a(b"}, OptionError, "regex cannot be followed.*invalid regex"),
        ({"json_schema": {"type": "foo"}}, OptionError, "json_schema cannot be followed: Invalid type: foo"),
        ({"json_schema": {"not": {}}}, OptionError, 'json_schema cannot be followed: Unimplemented keys: \\["not"\\]'),
        ({"json_schema": "author.json"}, OptionError, "json_schema is not JSON.*not the name of its file"),
        ({"json_schema": 5}, OptionError, "json_schema must be a JSON schema"),
        ({"json_schema": {}, "regex": "a"}, OptionError, "give one of the two"),
        ({"json_schema": {}, "ignore_eos": True}, InputError, "json_schema needs an end of sequence"),
        ({"regex": ""}, OptionError, "must be a regular expression"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_the_first_step(
    directory: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    runner = program(directory)
    with pytest.raises(error, match=message):
        runner.generate(prompts=["The fox"], **settings)
    assert isinstance(runner.session, FakeCausalLM)
    assert runner.session.steps == []


def test_a_tokenizer_without_bytes_is_refused(tokenizer_folders: dict[str, Path], generator: TextGenerator) -> None:
    words = TextGenerator(generator.session, load_tokenizer(tokenizer_folders["word_piece"]))
    with pytest.raises(InputError, match="regex cannot be used with this tokenizer.*byte-level BPE"):
        words.generate([[5]], regex="a", eos_token_id=2)
    with pytest.raises(InputError, match="regex needs a fast tokenizer"):
        TextGenerator(generator.session).generate([[5]], regex="a", eos_token_id=2)


def test_a_schema_may_be_a_pydantic_model() -> None:
    from pydantic import BaseModel

    class Animal(BaseModel):
        name: str

    assert json.loads(schema_text(Animal))["required"] == ["name"]


def test_penalties_are_those_of_openais_interface(generator: TextGenerator) -> None:
    """``score - presence * [count > 0] - frequency * count``, over the tokens of the answer."""
    prompt, presence, frequency = [0, 44, 9], 40.0, 70.0
    answer: list[int] = []
    for _ in range(12):
        scores = next_logits([*prompt, *answer], VOCAB).astype(np.float64)
        for token in set(answer):
            scores[token] -= presence + frequency * answer.count(token)
        answer.append(int(scores.argmax()))
    asked = {"presence_penalty": presence, "frequency_penalty": frequency, "max_new_tokens": 12, "ignore_eos": True}
    assert generator.generate(prompt, **asked).generated_ids == [answer]
    assert generator.generate(prompt, max_new_tokens=12, ignore_eos=True).generated_ids != [answer]
