"""The rules against Transformers' own processors: random scores and histories, and whole generations."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig, TopPLogitsWarper, WatermarkingConfig

from qeff_framework.generation import GenerationSettings, TextGenerator
from qeff_framework.generation.rows import Row
from qeff_framework.generation.sampling import GreedySelector
from qeff_framework.generation.scores import build_rules
from qeff_framework.generation.settings import WARPERS
from tests.generation.fakes import FakeSpeculative
from tests.generation.hf_session import LlamaSession, hf_generate, tiny_llama

VOCAB = 24
ids = st.integers(0, VOCAB - 1)
words = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=8)
factors = st.sampled_from([0.5, 1.3, 2.0])

#: Setting -> values that ask for something. Few different tokens, so that histories repeat themselves.
RULES: dict[str, st.SearchStrategy[Any]] = {
    "sequence_bias": st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.floats(-9, 9, width=32)).map(list),
        min_size=1,
        max_size=8,
    ),
    "encoder_repetition_penalty": factors,
    "repetition_penalty": factors,
    "no_repeat_ngram_size": st.integers(1, 4),
    "encoder_no_repeat_ngram_size": st.integers(1, 4),
    "bad_words_ids": words,
    "min_length": st.integers(1, 12),
    "min_new_tokens": st.integers(1, 8),
    "forced_bos_token_id": ids,
    "forced_eos_token_id": ids | st.lists(ids, min_size=1, max_size=3),
    "remove_invalid_values": st.just(True),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 4), st.sampled_from([0.7, 1.1, 3.0])),
    "suppress_tokens": st.lists(st.integers(-1, VOCAB + 3), max_size=5),
    "begin_suppress_tokens": st.lists(st.integers(-1, VOCAB + 3), max_size=5),
    "renormalize_logits": st.just(True),
    "temperature": st.sampled_from([0.3, 0.7, 1.9]),
    "top_h": st.sampled_from([0.2, 0.6, 0.95]),
    "top_k": st.integers(1, VOCAB + 2),
    "top_p": st.sampled_from([0.13, 0.57, 0.91]),
    "min_p": st.sampled_from([0.0, 0.07, 0.4]),
    "typical_p": st.sampled_from([0.13, 0.57, 0.91]),
    "epsilon_cutoff": st.sampled_from([0.007, 0.11]),
    "eta_cutoff": st.sampled_from([0.007, 0.11]),
}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(RULES)), min_size=1, max_size=4, unique=True))
    config = {name: draw(RULES[name]) for name in names}
    if set(WARPERS) & set(config):
        # Which of several forced, hence equally likely tokens a warper keeps is left to torch's sorting, and the greatest float32
        # in place of an infinity is more than the warpers of Transformers survive.
        assume(not isinstance(config.get("forced_eos_token_id"), list) and "remove_invalid_values" not in config)
    return {
        "config": config,
        "eos": draw(st.lists(ids, min_size=1, max_size=3, unique=True)),
        "prompt": draw(st.lists(st.integers(0, 5), min_size=1, max_size=9)),
        "source": draw(st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=9)),
        "generated": draw(st.lists(st.integers(0, 5), max_size=8)),
        "seed": draw(st.integers(0, 2**32)),
        "odd": "remove_invalid_values" in config and draw(st.booleans()),
    }


def transformers_processors(case: dict[str, Any], limit: int) -> Any:
    """What `generate` of Transformers builds for one row."""
    prompt = case["prompt"]
    config = GenerationConfig(do_sample=True)
    config.update(**(GenerationConfig._get_default_generation_params() | {"top_k": None}), defaults_only=True)
    for name, value in case["config"].items():
        setattr(config, name, value)  # without the checks of combinations, which leave no token to choose
    config.max_length = len(prompt) + limit
    config._eos_token_tensor = torch.tensor(case["eos"])
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + len(prompt)
    encoder_ids = prompt if case["source"] is None else case["source"]
    return tiny_llama()._get_logits_processor(
        config, input_ids_seq_length=len(prompt), encoder_input_ids=torch.tensor([encoder_ids]), device="cpu"
    )


@settings(max_examples=300)
@given(cases())
def test_scores_are_those_of_transformers_at_every_step(case: dict[str, Any]) -> None:
    limit = len(case["generated"]) + 1
    asked = dict(case["config"])
    if "min_new_tokens" in asked:
        asked.pop("min_length", None)
    chosen = GenerationSettings(do_sample=True, eos_token_ids=tuple(case["eos"]), **asked)
    row = Row(index=0, prompt=case["prompt"], limit=limit, source=case["source"] or ())
    ours, theirs = build_rules(chosen, row, VOCAB), transformers_processors(case, limit)
    rng = np.random.default_rng(case["seed"])
    for token in [None, *case["generated"]]:
        if token is not None:
            row.generated.append(token)
        logits = rng.normal(scale=3, size=VOCAB).astype(np.float32)
        if case["odd"]:
            logits[rng.integers(0, VOCAB, 3)] = [np.nan, np.inf, -np.inf]
        given_scores = torch.from_numpy(logits[None].copy())
        with np.errstate(all="ignore"):
            for rule in ours:
                rule(row, logits)
        if np.isneginf(logits).all():
            return  # Transformers fails or takes token 0; here choosing a token from this is refused
        expected = theirs(torch.tensor([[*row.prompt, *row.generated]]), given_scores)[0].numpy()
        if "top_h" in asked and _is_nearly_certain(expected):
            return  # the entropy is the rounding of a logarithm of nearly 1, in Transformers too
        np.testing.assert_array_equal(np.isneginf(logits), np.isneginf(expected))
        np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5)


def _is_nearly_certain(scores: Any) -> bool:
    return float(torch.from_numpy(scores).double().softmax(0).nan_to_num().max()) > 1 - 1e-4


@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["flat", "steep"])
def test_top_p_of_a_large_vocabulary_keeps_what_transformers_keeps(scale: float) -> None:
    """Its most likely tokens alone are sorted where they make up the mass; one token is left, however small that is."""
    rng = np.random.default_rng(1)
    for mass in (1e-9, 0.3, 0.9, 0.999):
        scores = rng.normal(scale=scale, size=5000).astype(np.float32)
        expected = TopPLogitsWarper(mass)(torch.tensor([[1]]), torch.from_numpy(scores[None].copy()))[0].numpy()
        (rule,) = build_rules(GenerationSettings(do_sample=True, top_p=mass), Row(index=0, prompt=[1], limit=1), 5000)
        rule(Row(index=0, prompt=[1], limit=1), scores)
        np.testing.assert_array_equal(scores, expected)


# --- whole generations ------------------------------------------------------------------------------------------------

PROMPTS = [[5, 9, 11, 2, 7, 5, 9], [3], [8, 8, 30, 41, 12]]

#: What a checkpoint's generation_config.json may say, each with another text as its result.
CHECKPOINTS: list[dict[str, Any]] = [
    {"bad_words_ids": [[40], [13, 36], [21, 27]]},
    {"suppress_tokens": [40, 13]},
    {"begin_suppress_tokens": list(range(40))},
    {"repetition_penalty": 1.6},
    {"encoder_repetition_penalty": 2.5},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 1},
    {"sequence_bias": [[[4], 9.0], [[4, 6], 20.0]]},
    {"eos_token_id": list(range(24)), "min_new_tokens": 4},
    {"eos_token_id": list(range(24)), "min_length": 9},
    {"eos_token_id": list(range(24)), "min_length": 30, "min_new_tokens": 2},
    {"eos_token_id": [1, 9], "exponential_decay_length_penalty": [2, 1.9]},
    {"forced_bos_token_id": 9, "begin_suppress_tokens": list(range(40))},
    {"forced_eos_token_id": [7, 5], "suppress_tokens": [5]},
    {"renormalize_logits": True, "remove_invalid_values": True, "repetition_penalty": 0.7},
    {"max_new_tokens": 3},
    {"max_length": 9},
    {"max_length": 40, "max_new_tokens": 5},
    {"watermarking_config": {"bias": 6.0, "greenlist_ratio": 0.4}},
]


@pytest.mark.parametrize("config", CHECKPOINTS, ids="+".join)
def test_greedy_decoding_does_what_the_checkpoint_says(config: dict[str, Any]) -> None:
    limit = {} if {"max_new_tokens", "max_length"} & set(config) else {"max_new_tokens": 12}
    output = TextGenerator(LlamaSession(batch_size=3), generation_defaults=config).generate(PROMPTS, **limit)
    expected = [hf_generate(prompt, **config, **limit) for prompt in PROMPTS]
    assert output.generated_ids == expected
    assert expected != [hf_generate(prompt, max_new_tokens=12) for prompt in PROMPTS], "the rule has no effect"
    # As the caller's own config, and in the words of keywords, it is the same.
    generator = TextGenerator(LlamaSession(batch_size=3))
    assert generator.generate(PROMPTS, generation_config=GenerationConfig(**config, **limit)).generated_ids == expected
    assert generator.generate(PROMPTS, **config, **limit).generated_ids == expected


@pytest.mark.parametrize(
    "watermark",
    [
        WatermarkingConfig(bias=5.0, seeding_scheme="selfhash", context_width=2),
        SynthIDTextWatermarkingConfig(ngram_len=3, keys=[7, 19, 23], context_history_size=32),
    ],
    ids=["selfhash", "synthid"],
)
def test_watermarks_are_those_of_transformers(watermark: Any) -> None:
    asked = GenerationConfig(max_new_tokens=10, watermarking_config=watermark)
    theirs = tiny_llama().generate(torch.tensor([PROMPTS[2]]), attention_mask=torch.ones(1, 5), generation_config=asked)
    ours = TextGenerator(LlamaSession()).generate(PROMPTS[2], generation_config=asked)
    assert ours.generated_ids == [theirs[0, 5:].tolist()]


def test_a_limit_of_the_checkpoint_gives_way_to_the_context() -> None:
    generator = TextGenerator(LlamaSession(batch_size=2, ctx_len=16), generation_defaults={"max_new_tokens": 500})
    assert [len(row) for row in generator.generate([[3], [4, 5, 6]]).generated_ids] == [15, 13]
    longer = TextGenerator(LlamaSession(ctx_len=16), generation_defaults={"max_length": 4})
    assert [len(row) for row in longer.generate([[3]]).generated_ids] == [3]
    assert [len(row) for row in longer.generate([[3]], max_length=None).generated_ids] == [15]


def test_draft_tokens_are_checked_by_the_rules() -> None:
    def repeating(history: Any) -> np.ndarray:
        return np.eye(17, dtype=np.float32)[(history[-1] + 1) % 5] * 9 + np.arange(17, dtype=np.float32) / 17

    config = {"no_repeat_ngram_size": 3, "bad_words_ids": [[3, 4], [16]], "suppress_tokens": [15], "eos_token_id": 14}
    config |= {"min_new_tokens": 8, "repetition_penalty": 1.2, "forced_eos_token_id": 2}
    sessions = [FakeSpeculative((1, 3), rows=2, ctx_len=64, model=repeating) for _ in range(2)]
    prompts = [[0, 1, 2, 3, 0, 1, 2], [4, 0, 1]]
    plain, drafted = (
        TextGenerator(session, generation_defaults=config).generate(prompts, max_new_tokens=30, **asked)
        for session, asked in zip(sessions, ({}, {"prompt_lookup_num_tokens": 3}), strict=True)
    )
    assert drafted.generated_ids == plain.generated_ids
    assert drafted.perf_metrics.drafts_proposed > 0


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_step_costs_the_same_however_long_the_text_is() -> None:
    config = {"no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3, "repetition_penalty": 1.2}
    config |= {"bad_words_ids": [[3, 4]], "sequence_bias": [[[1], 2.0], [[1, 2], 2.0]], "suppress_tokens": [5]}
    rng = np.random.default_rng(0)
    peaks = []
    for length in (100, 20_000):
        row = Row(index=0, prompt=rng.integers(0, VOCAB, length).tolist(), limit=100)
        rules = build_rules(GenerationSettings(**config), row, VOCAB)
        scores = np.zeros(VOCAB, dtype=np.float32)
        for warm in range(3):
            for rule in rules:
                rule(row, scores)
            row.generated.append(warm)
        tracemalloc.start()
        for rule in rules:
            rule(row, scores)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2000


def test_without_rules_no_score_is_copied() -> None:
    generator = TextGenerator(
        LlamaSession(), generation_defaults={"num_beams": 1, "min_length": 5, "suppress_tokens": []}
    )
    assert isinstance(generator.request([[1]]).selector, GreedySelector)
