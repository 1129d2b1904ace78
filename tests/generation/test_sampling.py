from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from qeff_framework.errors import ExecutionError, InputError, OptionError
from qeff_framework.generation import TextGenerator, resolve_settings
from qeff_framework.generation.rows import Row
from qeff_framework.generation.sampling import RuledSelector
from tests.generation.hf_session import HF_VOCAB, LlamaSession, hf_generate, tiny_llama

PROMPTS = [[5, 9, 11, 2, 7, 5, 9], [3], [8, 8, 30, 41, 12]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that starting threads costs more than computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> TextGenerator:
    return TextGenerator(LlamaSession(batch_size=4))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 3},
        {"eos_token_id": list(range(10)), "min_new_tokens": 4},
        {"eos_token_id": list(range(10)), "min_length": 9},
        {"bad_words_ids": [[7], [11, 12]], "suppress_tokens": [1, 2, 3]},
        {"begin_suppress_tokens": list(range(20)), "forced_eos_token_id": 5},
        {"sequence_bias": [[[4], 9.0], [[4, 6], -20.0]], "renormalize_logits": True},
        {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 1},
    ],
    ids=lambda config: "+".join(config) or "greedy",
)
def test_tokens_equal_those_of_transformers(generator: TextGenerator, config: dict[str, Any]) -> None:
    output = generator.generate(PROMPTS, max_new_tokens=14, **config)
    assert output.generated_ids == [hf_generate(prompt, max_new_tokens=14, **config) for prompt in PROMPTS]
    as_object = generator.generate(PROMPTS, generation_config=GenerationConfig(max_new_tokens=14, **config))
    assert as_object.generated_ids == output.generated_ids


def test_unequal_prompts_equal_a_left_padded_batch_of_transformers(generator: TextGenerator) -> None:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    config = GenerationConfig(max_new_tokens=8, repetition_penalty=1.3, pad_token_id=0)
    theirs = tiny_llama().generate(ids, attention_mask=mask, generation_config=config)
    ours = generator.generate({"input_ids": ids, "attention_mask": mask}, generation_config=config)
    assert ours.generated_ids == theirs[:, width:].tolist()


class Shift(LogitsProcessor):
    """Prefers the token after the last one."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.shapes.append((*input_ids.shape, *scores.shape))
        scores[:, (int(input_ids[0, -1]) + 1) % HF_VOCAB] += 8
        return scores


class StopAfter(StoppingCriteria):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        assert scores is None
        return input_ids[:, -1] == self.token


def test_the_callers_processors_are_applied_as_in_transformers(generator: TextGenerator) -> None:
    shift = Shift()
    output = generator.generate(
        PROMPTS[0], max_new_tokens=10, repetition_penalty=1.3, logits_processor=LogitsProcessorList([shift])
    )
    theirs = hf_generate(
        PROMPTS[0], processors=LogitsProcessorList([Shift()]), max_new_tokens=10, repetition_penalty=1.3
    )
    assert output.generated_ids == [theirs]
    assert theirs != hf_generate(PROMPTS[0], max_new_tokens=10, repetition_penalty=1.3)
    assert shift.shapes[:2] == [(1, 7, 1, HF_VOCAB), (1, 8, 1, HF_VOCAB)]


def test_a_processor_of_the_caller_replaces_the_one_of_its_class(generator: TextGenerator) -> None:
    asked = {"max_new_tokens": 12, "repetition_penalty": 1.3}
    output = generator.generate(PROMPTS[0], logits_processor=[RepetitionPenaltyLogitsProcessor(0.4)], **asked)
    stronger = hf_generate(PROMPTS[0], max_new_tokens=12, repetition_penalty=0.4)
    assert output.generated_ids == [stronger]
    assert stronger != hf_generate(PROMPTS[0], **asked)


def test_stopping_criteria_end_their_row_only(generator: TextGenerator) -> None:
    free = generator.generate(PROMPTS, max_new_tokens=10).generated_ids
    stop = free[0][3]
    output = generator.generate(PROMPTS, max_new_tokens=10, stopping_criteria=StoppingCriteriaList([StopAfter(stop)]))
    theirs = [hf_generate(p, criteria=StoppingCriteriaList([StopAfter(stop)]), max_new_tokens=10) for p in PROMPTS]
    assert output.generated_ids == theirs
    assert output.finish_reasons[0] == "stopping_criteria"
    with pytest.raises(OptionError, match=r"stopping_criteria takes a list, and a StopAfter was given; .*=\[\.\.\.\]"):
        generator.generate(PROMPTS, stopping_criteria=StopAfter(stop))
    for name in ("stopping_criteria", "logits_processor"):
        with pytest.raises(OptionError, match=f"{name} holds 'stop', which cannot be called with token ids and scores"):
            generator.generate(PROMPTS, **{name: ["stop"]})


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"logits_processor": [lambda ids, scores: scores[:, :3]]}, r"returned \[1, 3\] instead of .* shape"),
        ({"logits_processor": [lambda ids, scores: None]}, "returned NoneType instead of a tensor"),
        ({"stopping_criteria": [lambda ids, scores: None]}, "returned None for one row; it returns True or False"),
        ({"stopping_criteria": [lambda ids, scores: ids[0] > 0]}, r"returned tensor\(\[.* for one row"),
        ({"streamer": object()}, "streamer=object has no put and end"),
    ],
)
def test_what_the_caller_gives_answers_as_that_of_transformers(
    generator: TextGenerator, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        generator.generate(PROMPTS[0], max_new_tokens=4, **asked)


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        assert value.dtype == torch.int64
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


def test_a_streamer_gets_what_transformers_gives_it(generator: TextGenerator) -> None:
    ours, theirs = Recorder(), Recorder()
    generator.generate(PROMPTS[2], max_new_tokens=6, streamer=ours)
    hf_generate(PROMPTS[2], streamer=theirs, max_new_tokens=6)
    assert ours.calls == theirs.calls
    assert ours.calls[0] == [PROMPTS[2]]
    with pytest.raises(InputError, match="a streamer takes one prompt, 3 were given"):
        generator.generate(PROMPTS, streamer=Recorder())


# --- sampling -------------------------------------------------------------------------------------------------------

LOGITS = np.random.default_rng(5).normal(scale=2.0, size=(1, 24)).astype(np.float32)


def hf_probabilities(logits: np.ndarray, **config: Any) -> torch.Tensor:
    """The distribution that Transformers' own method of a model builds for these settings."""
    settings = GenerationConfig(do_sample=True, **{"top_k": 50, "top_p": 1.0, "temperature": 1.0, **config})
    defaults = GenerationConfig._get_default_generation_params()
    settings.update(**defaults, defaults_only=True)
    processors = tiny_llama()._get_logits_processor(settings, input_ids_seq_length=1)
    return torch.softmax(processors(torch.tensor([[1]]), torch.from_numpy(logits.copy())), dim=-1)[0]


@pytest.mark.parametrize(
    "config",
    [
        {"top_k": 5},
        {"top_p": 0.7, "temperature": 0.8},
        {"top_k": 8, "top_p": 0.8, "temperature": 1.5},
        {"min_p": 0.1},
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.03},
        {"eta_cutoff": 0.03},
        {"top_h": 0.5},
        {},
    ],
    ids=lambda config: "+".join(config) or "default",
)
def test_samples_follow_the_distribution_of_transformers(config: dict[str, Any]) -> None:
    expected = hf_probabilities(LOGITS, **config).numpy()
    row = Row(index=0, prompt=[1], limit=1)
    select = RuledSelector(resolve_settings({}, do_sample=True, seed=11, **config), [row])
    draws = 3000
    counts = np.bincount([select(LOGITS, [row])[0] for _ in range(draws)], minlength=LOGITS.size)

    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    likely = expected > 0.004  # seen at least once in 3000 draws with a probability above 0.99999
    assert (counts[likely] > 0).all()
    deviation = np.sqrt(draws * expected * (1 - expected)) + 1e-9
    assert (np.abs(counts - draws * expected)[likely] < 5 * deviation[likely]).all()


def test_a_seed_repeats_a_sample_and_rows_draw_on_their_own(generator: TextGenerator) -> None:
    asked = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5}
    first = generator.generate([PROMPTS[0]] * 3, seed=4, **asked).generated_ids
    assert generator.generate([PROMPTS[0]] * 3, seed=4, **asked).generated_ids == first
    assert generator.generate([PROMPTS[0]], seed=4, **asked).generated_ids == first[:1], "neighbours have no influence"
    assert len({tuple(ids) for ids in first}) == 3
    assert generator.generate([PROMPTS[0]], seed=5, **asked).generated_ids != first[:1]


def test_torchs_global_seed_governs_samples_without_a_seed(generator: TextGenerator) -> None:
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(
            generator.generate([PROMPTS[0]], do_sample=True, max_new_tokens=12, temperature=2.0).generated_ids
        )
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("asked", [{"do_sample": True}, {}], ids=["sampling", "greedy"])
def test_rules_that_leave_no_token_are_an_error(generator: TextGenerator, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"left prompt 0 no token .*\(suppress_tokens"):
        generator.generate([[1]], max_new_tokens=2, suppress_tokens=list(range(HF_VOCAB)), **asked)


def test_infinite_logits_choose_a_token_where_that_is_asked_for() -> None:
    row = Row(index=0, prompt=[1], limit=1)
    logits = np.array([[0, np.inf, 3]], dtype=np.float32)
    for settings in (resolve_settings({}, repetition_penalty=1.5), resolve_settings({}, do_sample=True)):
        with pytest.raises(
            ExecutionError, match="logits of prompt 0 at position 0 contain infinity.*remove_invalid_val"
        ):
            RuledSelector(settings, [row])(logits, [row])
    cleaned = resolve_settings({}, do_sample=True, remove_invalid_values=True)
    assert RuledSelector(cleaned, [row])(np.array([[np.nan, np.inf, -np.inf]]), [row]) == [1]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"bad_words_ids": [[-1]]}, OptionError, r"bad_words_ids=\[\[-1\]\] must be a list of lists"),
        ({"bad_words_ids": []}, OptionError, "bad_words_ids"),
        ({"sequence_bias": [[[4], "x"]]}, OptionError, "sequence_bias"),
        ({"forced_eos_token_id": -3}, OptionError, "forced_eos_token_id=-3 must be a token id"),
        ({"exponential_decay_length_penalty": (3, 1.5)}, OptionError, "needs an end of sequence"),
        ({"encoder_repetition_penalty": 0.0}, OptionError, r"encoder_repetition_penalty=0\.0 must be"),
        ({"watermarking_config": {"greenlist_ratio": 3}}, OptionError, "watermarking_config: .*greenlist_ratio"),
        ({"watermarking_config": {"ratio": 3}}, OptionError, "watermarking_config"),
        ({"bad_words_ids": [[3, HF_VOCAB]]}, InputError, f"bad_words_ids holds the token ids {HF_VOCAB}, the model"),
        ({"sequence_bias": [[[99], 2.0]]}, InputError, "sequence_bias holds the token ids 99"),
        ({"forced_bos_token_id": 99}, InputError, "forced_bos_token_id: the model cannot generate the token 99"),
    ],
)
def test_values_without_a_meaning_are_refused_before_the_first_step(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    session = LlamaSession()
    with pytest.raises(error, match=message):
        TextGenerator(session).generate([[1]], **config)
    assert session.steps == []


def test_what_is_kept_for_a_row_is_given_back_when_it_has_finished() -> None:
    session = LlamaSession(batch_size=2)
    generator = TextGenerator(session)
    request = generator.request(
        PROMPTS[:2],
        resolve_settings({}, max_new_tokens=4, do_sample=True, seed=1),
        logits_processor=[Shift()],
        stopping_criteria=[StopAfter(99)],
    )
    generator.scheduler.add(request)
    while generator.scheduler.busy:
        generator.scheduler.step()
    selector = request.selector
    assert isinstance(selector, RuledSelector)
    kept = (selector._rules, selector._generators, selector._history._tensors, request.rules._history._tensors)
    assert not any(kept)
