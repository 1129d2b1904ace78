"""Drafts from the text itself change the number of steps, and nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qeff_framework.errors import InputError
from qeff_framework.generation import GenerationOutput, GenerationSettings, TextGenerator
from qeff_framework.generation.prompt_lookup import PromptLookup
from tests.generation.fakes import VOCAB, FakeCausalLM, FakeSpeculative

#: Few tokens, so that n-grams come again.
tokens = st.integers(0, 3)


def forgetful_logits(history: Sequence[int]) -> np.ndarray:
    """A model that repeats itself: only the last two tokens and, now and then, the length count."""
    seed = zlib.crc32(bytes([*history[-2:], len(history) // 7]))
    return np.random.default_rng(seed).permutation(VOCAB).astype(np.float32)


@st.composite
def generations(draw: st.DrawFn) -> dict[str, Any]:
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=5))
    rows = draw(st.integers(1, 3))
    continuous = draw(st.booleans())
    drafts = draw(st.sampled_from([1, 3, (0, 2), (1, 4), 7]))
    return {
        "prompts": prompts if continuous else prompts[:rows],
        "program": {
            "drafts": drafts,
            "rows": rows,
            "slots": rows + draw(st.integers(0, 2)) if continuous else None,
            "ctx_len": 28,
            "model": forgetful_logits,
        },
        "asked": {
            "max_new_tokens": draw(st.integers(1, 16)),
            "eos_token_ids": tuple(draw(st.lists(st.integers(0, VOCAB - 1), max_size=2))),
        },
        "count": draw(st.integers(1, max(drafts) if isinstance(drafts, tuple) else drafts)),
        "ngram": draw(st.integers(1, 4)),
    }


def generated(case: dict[str, Any], **more: Any) -> tuple[GenerationOutput, FakeSpeculative]:
    session = FakeSpeculative(**case["program"])
    output = TextGenerator(session).generate_ids(case["prompts"], GenerationSettings(**case["asked"], **more))
    return output, session


@settings(max_examples=300)
# A draft that ends its row spares no step.
@example(
    {
        "prompts": [[0, 0, 3, 0]],
        "program": {"drafts": 1, "rows": 1, "slots": None, "ctx_len": 28, "model": forgetful_logits},
        "asked": {"max_new_tokens": 5, "eos_token_ids": (0,)},
        "count": 1,
        "ngram": 1,
    }
)
@given(generations())
def test_drafts_change_no_token_and_spare_the_steps_that_they_say(case: dict[str, Any]) -> None:
    plain, _ = generated(case)
    output, session = generated(case, prompt_lookup_num_tokens=case["count"], max_matching_ngram_size=case["ngram"])
    assert output.generated_ids == plain.generated_ids
    assert output.finish_reasons == plain.finish_reasons
    before, after = plain.perf_metrics, output.perf_metrics
    assert (before.drafts_proposed, before.drafts_accepted) == (0, 0)
    assert 0 <= after.drafts_accepted <= after.drafts_proposed
    decoded = [step for step in session.steps if step["position_ids"].shape[0] == case["program"]["rows"]]
    assert max((int(step["position_ids"].max()) for step in decoded), default=0) < case["program"]["ctx_len"]
    if len(case["prompts"]) == 1:
        assert after.decode_steps == before.decode_steps - after.drafts_accepted


@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.4}, {"do_sample": True, "seed": 5, "temperature": 2.0}])
def test_penalties_and_samples_are_those_of_plain_decoding(asked: dict[str, Any]) -> None:
    case = {
        "prompts": [[1, 2, 1, 2, 1], [3, 3, 3]],
        "program": {"drafts": (1, 3), "rows": 2, "ctx_len": 64, "model": forgetful_logits},
        "asked": {"max_new_tokens": 50, **asked},
    }
    plain, _ = generated(case)
    output, _ = generated(case, prompt_lookup_num_tokens=3)
    assert output.generated_ids == plain.generated_ids
    assert output.perf_metrics.drafts_accepted > 0


def test_a_text_that_repeats_takes_a_fraction_of_the_steps() -> None:
    def counting(history: Sequence[int]) -> np.ndarray:
        return np.eye(VOCAB, dtype=np.float32)[(history[-1] + 1) % 5]

    case = {"prompts": [[0, 1, 2, 3, 4, 0]], "program": {"drafts": 3, "model": counting, "ctx_len": 64}}
    output, _ = generated({**case, "asked": {"max_new_tokens": 41}}, prompt_lookup_num_tokens=3)
    assert output.generated_ids == [[(1 + number) % 5 for number in range(41)]]
    assert output.perf_metrics.decode_steps == 10
    assert "10 steps, 30 of 30 draft tokens accepted" in str(output.perf_metrics)


@given(st.lists(tokens, max_size=40), st.integers(1, 3), st.integers(1, 6))
def test_a_draft_continues_the_last_occurrence_of_the_longest_ngram(text: list[int], ngram: int, count: int) -> None:
    lookup = PromptLookup(text, max_ngram=ngram)
    expected: list[int] = []
    for length in range(min(ngram, len(text) - 1), 0, -1):
        places = [end for end in range(length, len(text)) if text[end - length : end] == text[-length:]]
        if places:
            endless = text[places[-1] :] * count
            expected = endless[:count]
            break
    assert lookup.draft(count) == expected


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (FakeSpeculative((1, 3)), "at most 3 draft tokens per step; compile with num_speculative_tokens=4, or ask for"),
        (FakeCausalLM(), "the logits of one token per step; compile with num_speculative_tokens=4$"),
    ],
)
def test_a_program_that_cannot_check_the_drafts_says_so(session: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextGenerator(session).generate([[1, 2]], prompt_lookup_num_tokens=4)
    assert session.steps == []
