"""A draft model changes the number of steps, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_framework.errors import InputError
from qeff_framework.generation import GenerationSettings, TextGenerator
from tests.generation.fakes import VOCAB, FakeContinuous, FakeSampler, FakeSpeculative, next_logits, worse


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    lanes = draw(st.integers(1, 3))
    continuous = draw(st.booleans())
    ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)
    sampling = draw(st.sampled_from([{}, {"do_sample": True, "seed": 3, "top_k": 4}]))
    return {
        "prompts": draw(st.lists(ids, min_size=1, max_size=5 if continuous else lanes)),
        "target": {
            "drafts": draw(st.sampled_from([1, 4, (0, 2)])),
            "rows": lanes,
            "slots": lanes + draw(st.integers(0, 1)) if continuous else None,
        },
        "draft": {
            "drafts": draw(st.sampled_from([(0,), 2])),
            "rows": lanes + draw(st.integers(0, 1)),
            "prefill": draw(st.sampled_from([3, 8])),
            "ctx_len": draw(st.sampled_from([8, 14, 32])),
        },
        "share": draw(st.integers(0, 10)),
        "asked": {
            "max_new_tokens": draw(st.integers(1, 16)),
            "eos_token_ids": tuple(draw(st.lists(st.integers(0, VOCAB - 1), max_size=2))),
            **sampling,
        },
    }


@settings(max_examples=200)
@given(cases())
def test_tokens_are_those_without_a_draft_model(case: dict[str, Any]) -> None:
    asked = GenerationSettings(**case["asked"])
    plain, target = FakeSpeculative(**case["target"]), FakeSpeculative(**case["target"])
    expected = TextGenerator(plain).generate_ids(case["prompts"], asked)
    draft = FakeSpeculative(**case["draft"], model=worse(case["share"]))
    output = TextGenerator(target).generate_ids(case["prompts"], asked, draft=draft)
    assert output.generated_ids == expected.generated_ids
    assert output.finish_reasons == expected.finish_reasons
    if case["target"]["slots"] is None:
        # With spare slots the order in which rows end decides which prompts find their beginnings in the cache.
        assert len(target.steps) <= len(plain.steps)
    if case["share"] == 0 and len(case["asked"]) == 2 and not case["asked"]["eos_token_ids"]:
        assert output.perf_metrics.drafts_accepted == output.perf_metrics.drafts_proposed


def test_a_good_draft_model_saves_steps_and_reads_each_token_once() -> None:
    target, draft = FakeSpeculative(3), FakeSpeculative((0,), model=worse(2))
    output = TextGenerator(target).generate([[1, 2, 3]], max_new_tokens=24, draft=draft)
    assert (
        output.generated_ids == TextGenerator(FakeSpeculative(3)).generate([[1, 2, 3]], max_new_tokens=24).generated_ids
    )
    assert len(target.steps) < 16
    fed = sum(int((step["position_ids"] >= 0).sum()) for step in draft.steps)
    metrics = output.perf_metrics
    # The prompt, each token once, drafts that were wrong, and at most one token more for each step.
    assert fed <= 3 + 24 + (metrics.drafts_proposed - metrics.drafts_accepted) + metrics.decode_steps


def test_a_draft_model_never_reads_a_token_that_its_table_has_not() -> None:
    draft = FakeSpeculative((0,))
    known = VOCAB - 5
    draft.compiled = replace(
        draft.compiled,
        outputs=tuple(
            replace(spec, shape=(*spec.shape[:-1], known)) if spec.name == "logits" else spec
            for spec in draft.compiled.outputs
        ),
    )
    draft.model = lambda history: np.where(np.arange(VOCAB) < known, next_logits(history), -np.inf)
    prompt = [VOCAB - 1, 3, VOCAB - 2]

    output = TextGenerator(FakeSpeculative(3)).generate([prompt], max_new_tokens=20, draft=draft)

    plain = TextGenerator(FakeSpeculative(3)).generate([prompt], max_new_tokens=20)
    assert output.generated_ids == plain.generated_ids
    assert max(output.generated_ids[0]) >= known
    assert all(step["input_ids"].max() < known for step in draft.steps)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (FakeContinuous(2, 2), "it batches continuously; compile it with batch_size=2 instead"),
        (FakeSpeculative((0,)), "it has 1 rows; compile it with batch_size=2"),
        (FakeSampler(2), "compile it without include_sampler"),
    ],
)
def test_a_program_that_cannot_decode_ahead_is_refused(draft: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextGenerator(FakeSpeculative(2, rows=2)).generate([[1]], draft=draft)


def test_a_target_that_checks_nothing_and_two_kinds_of_drafts_are_refused() -> None:
    draft = FakeSpeculative((0,))
    with pytest.raises(InputError, match="compile it with num_speculative_tokens=4"):
        TextGenerator(FakeSampler()).generate([[1]], draft=draft)
    with pytest.raises(InputError, match="give one of the two"):
        TextGenerator(FakeSpeculative(2)).generate([[1]], draft=draft, prompt_lookup_num_tokens=2)
