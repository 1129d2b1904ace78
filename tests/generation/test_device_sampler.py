"""What the loop feeds to a program that chooses tokens itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation import TextGenerator
from qeff_framework.runtime import CompiledCausalLM
from qeff_framework.serving import Engine
from tests.generation.fakes import VOCAB, FakeSampler, expected_tokens
from tests.serving.programs import VOCAB as TEXT_VOCAB
from tests.serving.programs import program, write_artifact


def test_tokens_of_the_answer_are_told_from_those_of_the_prompt() -> None:
    session = FakeSampler(batch_size=2)
    prompts = [[3, 1, 4, 1, 5, 9], [2, 6]]
    output = TextGenerator(session).generate(prompts, max_new_tokens=3)
    assert output.generated_ids == [expected_tokens(prompt, 3) for prompt in prompts]
    prefill, decode = session.fed[:2], session.fed[2:]
    assert all((step["last_accepted_output_tokens"] == -1).all() for step in prefill)
    assert [step["last_accepted_output_tokens"].ravel().tolist() for step in decode] == [
        [ids[number] for ids in output.generated_ids] for number in range(2)
    ]
    for step in session.fed:
        assert (step["temperatures"] == 0).all()
        assert (step["repetition_penalties"] == 1).all()


def drawn(session: FakeSampler, prompts: list[list[int]]) -> list[np.ndarray]:
    """The random numbers that chose each token of the first prompt."""
    asked = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.25}
    TextGenerator(session).generate(prompts, max_new_tokens=3, seed=7, **asked)
    for step in session.fed:
        values = [float(step[name][0, 0]) for name in ("temperatures", "top_ks", "top_ps", "min_ps")]
        assert values == pytest.approx([0.7, 5, 0.9, 0.1])
        assert float(step["repetition_penalties"][0, 0]) == 1.25
    chose = [step for step in session.fed if step["position_ids"][0].max() >= len(prompts[0]) - 1]
    return [step["random_numbers"][0] for step in chose]


def test_random_numbers_of_a_row_depend_on_nothing_but_seed_and_token() -> None:
    prompt = [3, 1, 4, 1, 5, 9]
    alone = drawn(FakeSampler(), [prompt])
    assert len({numbers.tobytes() for numbers in alone}) == 3
    for other in (drawn(FakeSampler(prefill=1), [prompt]), drawn(FakeSampler(batch_size=3), [prompt, [2], [8, 8]])):
        np.testing.assert_array_equal(alone, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"do_sample": True, "top_k": 9},
            "top_k=9: the program chooses among the 8 most likely tokens; give top_k=1 to 8",
        ),
        ({"do_sample": True, "top_k": 0}, "top_k=0: the program chooses among the 8 most likely tokens"),
        ({"do_sample": True, "top_k": 5, "eta_cutoff": 0.1}, "^eta_cutoff: the program chooses tokens on the device"),
        ({"suppress_tokens": [3], "logits_processor": [print]}, "^suppress_tokens, logits_processor: the program"),
    ],
)
def test_what_the_program_has_no_inputs_for_is_refused(settings: dict[str, Any], message: str) -> None:
    session = FakeSampler()
    with pytest.raises(InputError, match=message):
        TextGenerator(session).generate([[1]], **settings)
    assert session.fed == []


def test_rules_of_the_checkpoint_are_done_on_the_device_or_refused() -> None:
    session = FakeSampler()
    TextGenerator(session, generation_defaults={"repetition_penalty": 1.5}).generate([[1]], max_new_tokens=2)
    assert {float(step["repetition_penalties"][0, 0]) for step in session.fed} == {1.5}
    banning = TextGenerator(session, generation_defaults={"bad_words_ids": [[3]], "renormalize_logits": True})
    with pytest.raises(
        InputError, match="^bad_words_ids: the program chooses tokens on the device.*bad_words_ids=None"
    ):
        banning.generate([[1]])
    assert banning.generate([[1]], max_new_tokens=2, bad_words_ids=None).generated_ids == [expected_tokens([1], 2)]


def test_a_token_that_the_model_does_not_know_is_an_error() -> None:
    session = FakeSampler()
    session.answer = VOCAB
    with pytest.raises(ExecutionError, match=f"chose the token {VOCAB} for prompt 0"):
        TextGenerator(session).generate([[1]], max_new_tokens=2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("masks"))


def masking_program(directory: Path) -> tuple[CompiledCausalLM, FakeSampler]:
    session = FakeSampler(2, 8, 160, vocab=TEXT_VOCAB, masks=True)
    session.compiled = replace(session.compiled, directory=directory)
    return CompiledCausalLM(session), session


@pytest.mark.parametrize(
    "rules",
    [
        {"regex": "(yes|not the fox|maybe [0-9]{2})"},
        {"json_schema": {"type": "object", "properties": {"size": {"enum": [1, 25]}}, "required": ["size"]}},
        {"bad_words_ids": [[7], [8, 9]], "no_repeat_ngram_size": 1, "min_new_tokens": 5},
        {"forced_eos_token_id": 3, "suppress_tokens": [7, 9], "begin_suppress_tokens": list(range(300))},
    ],
)
def test_masks_are_those_of_the_hosts_rules(directory: Path, rules: dict[str, Any]) -> None:
    on_host = program(directory)
    on_device, session = masking_program(directory)
    asked = {"prompts": ["The fox", "The quick brown fox jumps"], "max_new_tokens": 40}
    expected = on_host.generate(**asked, **rules).generated_ids
    assert on_device.generate(**asked, **rules).generated_ids == expected != on_host.generate(**asked).generated_ids
    # Another request finds no mask left behind.
    session.fed.clear()
    assert on_device.generate(**asked).generated_ids == on_host.generate(**asked).generated_ids
    assert all(step["token_bitmasks"].all() for step in session.fed)


def test_rules_that_leave_no_token_end_their_request_alone(directory: Path) -> None:
    engine = Engine(masking_program(directory)[0])
    broken = engine.add("The fox", suppress_tokens=list(range(TEXT_VOCAB)), max_new_tokens=3)
    other = engine.add("The fox", max_new_tokens=3)
    tokens = [token for piece in engine.stream(other) for token in piece.tokens]
    assert [tokens] == program(directory).generate(prompts=["The fox"], max_new_tokens=3).generated_ids
    with pytest.raises(InputError, match="suppress_tokens left prompt 0 no token to choose from"):
        list(engine.stream(broken))


def test_a_program_without_masks_says_how_to_get_them(directory: Path) -> None:
    with pytest.raises(InputError, match="^regex: .* or compile with include_guided_decoding=True, or without"):
        TextGenerator(FakeSampler()).generate([[1]], regex="a")
