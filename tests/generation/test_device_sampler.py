"""What the loop feeds to a program that chooses tokens itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation import TextGenerator
from tests.generation.fakes import VOCAB, FakeSampler, expected_tokens


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
