"""Programs that end in a sampler: the tokens of the host's own choice, and none of the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.errors import InputError, OptionError
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm
from tests.twelve_prompts import CTX_LEN, MAX_LENGTH, answers_alone, twelve_prompts

pytestmark = pytest.mark.usefixtures("session_store")

SIZES = {"prefill_seq_len": 4, "ctx_len": CTX_LEN, "num_cores": 2}


@pytest.fixture(scope="module")
def models(session_store):
    """The same module compiled with and without a sampler that takes masks and returns probabilities: twelve prompts in four of
    six cache slots.
    """
    module, _ = tiny_causal_lm("llama")
    compiled = []
    for sampler in (True, False):
        model = QEFFAutoModelForCausalLM(module)
        sizes = {**SIZES, "full_batch_size": 4, "kv_cache_batch_size": 6}
        asked = dict.fromkeys(("include_sampler", "include_guided_decoding", "return_pdfs"), sampler)
        model.compile("ort_sim", **asked, **sizes)
        compiled.append(model)
    return module, *compiled


def test_greedy_equals_eager_and_penalties_equal_the_hosts(models) -> None:
    module, on_device, on_host = models
    assert on_device.compiled.outputs[0].name == "next_tokens"
    # The sampler finds its marks by the index of a row, so its rows are no part of the caches that a step is given.
    assert "UsedSlots@1" in on_device.compiled.transforms
    assert on_device.compiled.program["rows_of_step"] == []
    prompts = twelve_prompts()
    # Half of the prompts begin like another one, which a spare slot still holds: with penalties its marks would be wrong.
    prompts = [*prompts[:6], *([*prompts[3][:9], *prompt[:3]] for prompt in prompts[6:])]
    expected, eos = answers_alone(module, prompts)
    asked = {"prompts": prompts, "max_length": MAX_LENGTH, "eos_token_id": eos}
    assert on_device.generate(**asked).generated_ids == expected
    penalized = on_device.generate(**asked, repetition_penalty=1.7).generated_ids
    assert penalized == on_host.generate(**asked, repetition_penalty=1.7).generated_ids
    assert penalized != expected


def test_samples_repeat_with_a_seed_and_do_not_depend_on_the_batch(models) -> None:
    _, model, _ = models
    prompts = twelve_prompts()
    asked = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "generation_len": 9}
    together = model.generate(prompts=prompts, seed=3, **asked).generated_ids
    assert model.generate(prompts=prompts, seed=3, **asked).generated_ids == together
    assert model.generate(prompts=prompts[:1], seed=3, **asked).generated_ids == together[:1]
    assert model.generate(prompts=prompts, seed=4, **asked).generated_ids != together


def test_tokens_that_a_rule_forbids_are_masked_on_the_device(models) -> None:
    _, on_device, on_host = models
    prompts = twelve_prompts()
    free = on_host.generate(prompts=prompts, generation_len=9, ignore_eos=True).generated_ids
    often = int(np.bincount(np.concatenate(free)).argmax())
    rules = {"suppress_tokens": [often], "no_repeat_ngram_size": 2, "begin_suppress_tokens": [free[0][0]]}
    asked = {"prompts": prompts, "generation_len": 9, "eos_token_id": free[1][1], "min_new_tokens": 4, **rules}
    masked = on_device.generate(**asked).generated_ids
    assert masked == on_host.generate(**asked).generated_ids != free


def test_probabilities_are_those_of_the_eager_model(models) -> None:
    module, on_device, on_host = models
    prompts = twelve_prompts()[:5]
    output = on_device.generate(prompts=prompts, generation_len=3, ignore_eos=True, return_pdfs=True)
    for prompt, answer, probs in zip(prompts, output.generated_ids, output.probs, strict=True):
        with torch.no_grad():
            logits = module(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
        np.testing.assert_allclose(probs, logits.softmax(-1).numpy(), atol=1e-5)
    sampled = on_device.generate(
        prompts=prompts, generation_len=3, return_pdfs=True, do_sample=True, temperature=2.0, top_k=7, seed=5
    )
    for answer, probs in zip(sampled.generated_ids, sampled.probs, strict=True):
        assert np.count_nonzero(probs, axis=1).tolist() == [7] * len(answer)
        assert (probs[range(len(answer)), answer] > 0).all()
    assert on_device.generate(prompts=prompts[:1], generation_len=1).probs == []
    with pytest.raises(InputError, match="return_pdfs: the program does not return probabilities; compile with"):
        on_host.generate(prompts=prompts, return_pdfs=True)


def test_samples_follow_the_hosts_distribution(models) -> None:
    """First tokens of one prompt, given many times."""
    _, on_device, on_host = models
    asked = {"prompts": [[5, 17, 99]] * 400, "generation_len": 1, "do_sample": True, "temperature": 4.0, "top_k": 6}
    counts = [
        np.bincount([ids[0] for ids in model.generate(**asked, seed=11).generated_ids], minlength=128)
        for model in (on_device, on_host)
    ]
    assert np.count_nonzero(counts[0]) == np.count_nonzero(counts[1]) == 6
    assert (counts[0][counts[1] == 0] == 0).all()
    # Counts of two samples of 400 differ by a standard deviation of at most sqrt(2 * 400 / 4) = 14.
    assert np.abs(counts[0] - counts[1]).max() < 4 * 14


def test_a_plain_batch_and_a_prefill_of_one_token(session_store) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    model.compile("ort_sim", include_sampler=True, batch_size=2, **{**SIZES, "prefill_seq_len": 1})
    prompts = [[5, 17, 99, 23], [71, 3]]
    output = model.generate(prompts=prompts, generation_len=8, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, prompt, 8) for prompt in prompts]


def test_what_the_program_cannot_do_is_refused(models) -> None:
    _, model, _ = models
    for asked, message in [
        (
            {"frequency_penalty": 0.5},
            "frequency_penalty: the program chooses tokens on the device, by bad_words_ids, begin_suppress",
        ),
        ({"do_sample": True, "typical_p": 0.5}, "^typical_p: the program"),
        (
            {"logits_processor": [lambda ids, scores: scores]},
            "logits_processor: the program .* compile without include_sampler",
        ),
        ({"prompt_lookup_num_tokens": 2}, "returns the logits of one token per step"),
    ]:
        with pytest.raises(InputError, match=message):
            model.generate(prompts=[[5]], generation_len=2, **asked)
    with pytest.raises(OptionError, match="return_pdfs belongs to the sampler of a program; give include_sampler=True"):
        model.compile("ort_sim", return_pdfs=True, **SIZES)
    with pytest.raises(OptionError, match="include_sampler cannot be combined with num_speculative_tokens"):
        model.compile("ort_sim", include_sampler=True, num_speculative_tokens=2, **SIZES)
    with pytest.raises(OptionError, match="backend 'qnn' does not support include_sampler"):
        model.compile("qnn", include_sampler=True)
