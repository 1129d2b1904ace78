"""Beam search: the texts of Transformers' own, over a program whose states move between rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from qeff_framework.errors import InputError
from qeff_framework.generation import TextGenerator
from tests.generation.fakes import VOCAB, FakeCausalLM, FakeContinuous, FakeSampler, FakeSpeculative, next_logits


def close_logits(history: Sequence[int]) -> np.ndarray:
    """So close to each other that the best text is often not that of the best tokens."""
    return next_logits(history) / np.float32(30)


class Program(FakeCausalLM):
    """A program whose states can be read and written."""

    def model(self, history: Sequence[int]) -> np.ndarray:
        return close_logits(history)

    def read_states(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        assert [*names] == ["past_key.0"]
        return {"past_key.0": self.cache.copy()}

    def write_states(self, states: Mapping[str, np.ndarray]) -> None:
        self.cache[...] = states["past_key.0"]


class Reference(PreTrainedModel, GenerationMixin):
    """The same model for Transformers."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__(PretrainedConfig(vocab_size=VOCAB))
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any) -> CausalLMOutputWithPast:
        logits = np.stack([close_logits(row) for row in input_ids.tolist()])
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits)[:, None])

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids}


@st.composite
def cases(draw: st.DrawFn) -> SimpleNamespace:
    ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)
    beams = draw(st.integers(2, 4))
    rules: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"repetition_penalty": 1.5},
                {"no_repeat_ngram_size": 2},
                {"min_new_tokens": 3},
                {"forced_eos_token_id": 5},
            ]
        )
    )
    return SimpleNamespace(
        prompts=draw(st.lists(ids, min_size=1, max_size=2)),
        asked={
            "num_beams": beams,
            "num_return_sequences": draw(st.integers(1, beams)),
            "length_penalty": draw(st.sampled_from([1.0, 0.0, -1.0, 2.5])),
            "early_stopping": draw(st.sampled_from([True, False, "never"])),
            "max_new_tokens": draw(st.integers(3, 12)),
            "eos_token_id": draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3, unique=True)),
            **rules,
        },
    )


#: Of the most likely tokens most end the text, so that continuations must be looked for behind them.
MANY_ENDS = SimpleNamespace(
    prompts=[[1, 2, 3]],
    asked={
        "num_beams": 2,
        "num_return_sequences": 2,
        "length_penalty": 2.5,
        "early_stopping": "never",
        "max_new_tokens": 8,
        "eos_token_id": np.argsort(-close_logits([1, 2, 3]))[:4].tolist(),
    },
)


@settings(max_examples=60)
@given(cases())
@example(MANY_ENDS)
def test_texts_are_those_of_transformers(case: SimpleNamespace) -> None:
    config = GenerationConfig(do_sample=False, pad_token_id=0, use_cache=False, **case.asked)
    expected = []
    for prompt in case.prompts:
        ids = torch.tensor([prompt])
        found = Reference().generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        expected += [row[len(prompt) :].tolist() for row in found]
    generator = TextGenerator(Program(len(case.prompts) * case.asked["num_beams"]))
    output = generator.generate_ids(case.prompts, generator.settings(**case.asked))
    ends = case.asked["eos_token_id"]
    for tokens, reason, wanted in zip(output.generated_ids, output.finish_reasons, expected, strict=True):
        # Transformers fills shorter answers.
        assert wanted[: len(tokens)] == tokens
        assert set(wanted[len(tokens) :]) <= {0, *ends}
        assert reason == ("eos" if tokens[-1] in ends else "length")
    count = case.asked["num_return_sequences"]
    assert output.prompt_lengths == [len(prompt) for prompt in case.prompts for _ in range(count)]


def test_tokens_are_told_when_the_search_has_ended() -> None:
    told: list[tuple[int, int]] = []
    output = TextGenerator(Program(4)).generate(
        [[1, 2, 3]], num_beams=4, num_return_sequences=2, max_new_tokens=5, on_token=lambda *step: told.append(step)
    )
    assert told == [(row, token) for row, tokens in enumerate(output.generated_ids) for token in tokens]
    assert output.perf_metrics.decode_steps == 4


@pytest.mark.parametrize(
    ("program", "asked", "message"),
    [
        (
            Program(3),
            {},
            r"num_beams=2: the search takes 4 rows, the program computes 3 at once; compile with batch_size=4; num_beams=1",
        ),
        (FakeContinuous(4, 4), {}, "compile with batch_size=4 instead of full_batch_size"),
        (FakeSampler(4), {}, "compile it without include_sampler"),
        (FakeSpeculative(2, rows=4), {"prompt_lookup_num_tokens": 2}, "leave the drafts out"),
        (Program(4), {"do_sample": True}, "draws no samples"),
        (Program(4), {"stop_strings": ["a"]}, "stop_strings=None"),
        (Program(4), {"num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
    ],
)
def test_what_beams_cannot_be_combined_with(program: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextGenerator(program).generate([[1], [2]], num_beams=2, **asked)
    # The checkpoint's beams count as the caller's do, and the remedy works.
    generator = TextGenerator(program, generation_defaults={"num_beams": 2})
    if not asked:
        with pytest.raises(InputError, match=message):
            generator.generate([[1], [2]], max_new_tokens=2)
        assert len(generator.generate([[1], [2]], max_new_tokens=2, num_beams=1).generated_ids) == 2
