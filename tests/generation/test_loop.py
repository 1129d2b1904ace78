from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, StopStringCriteria

from qeff_framework.contracts import Specialization
from qeff_framework.errors import ExecutionError, InputError, OptionError
from qeff_framework.generation import GenerationSettings, TextGenerator
from qeff_framework.generation.rows import Row
from qeff_framework.generation.stopping import StopRules
from qeff_framework.tokenization import as_text_tokenizer
from tests.generation.fakes import VOCAB, FakeCausalLM, FakeEncoder, expected_tokens

tokens = st.integers(0, VOCAB - 1)


@st.composite
def generations(draw: st.DrawFn) -> dict[str, Any]:
    ctx_len = draw(st.integers(2, 24))
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=ctx_len - 1), min_size=1, max_size=4))
    room = ctx_len - max(map(len, prompts))
    return {
        "prompts": prompts,
        "batch_size": len(prompts) + draw(st.integers(0, 2)),
        "prefill": draw(st.integers(1, ctx_len + 2)),
        "ctx_len": ctx_len,
        "new_tokens": draw(st.none() | st.integers(1, room)),
        "room": room,
        "eos": draw(st.lists(tokens, max_size=3)),
    }


@settings(max_examples=400)
@given(generations())
def test_chunks_and_batches_do_not_change_what_a_prompt_gets(case: dict[str, Any]) -> None:
    session = FakeCausalLM(case["batch_size"], case["prefill"], case["ctx_len"])
    asked = GenerationSettings(max_new_tokens=case["new_tokens"], eos_token_ids=tuple(case["eos"]))
    output = TextGenerator(session).generate_ids(case["prompts"], asked)

    limit = case["new_tokens"] or case["room"]
    assert output.generated_ids == [expected_tokens(prompt, limit, case["eos"]) for prompt in case["prompts"]]
    ended = [ids[-1] in case["eos"] for ids in output.generated_ids]
    assert output.finish_reasons == ["eos" if by_eos else "length" for by_eos in ended]
    assert output.prompt_lengths == [len(prompt) for prompt in case["prompts"]]
    longest, most = max(map(len, case["prompts"])), max(map(len, output.generated_ids))
    assert len(session.steps) == math.ceil(longest / case["prefill"]) + most - 1
    assert output.perf_metrics.decode_steps == most - 1


def test_a_finished_or_unused_row_is_padding() -> None:
    prompt = [3, 1]
    first, second = expected_tokens(prompt, 2)
    assert first != second
    session = FakeCausalLM(batch_size=3, prefill=2, ctx_len=12)
    long_prompt = [5, 6, 8]
    assert first not in expected_tokens(long_prompt, 4), "the long row must outlive the short one"
    TextGenerator(session).generate_ids(
        [prompt, long_prompt], GenerationSettings(max_new_tokens=4, eos_token_ids=(first,))
    )

    positions = [step["position_ids"].tolist() for step in session.steps]
    assert positions[:2] == [[[0, 1], [0, 1], [-1, -1]], [[-1, -1], [2, -1], [-1, -1]]]
    assert positions[2:] == [[[-1], [3], [-1]], [[-1], [4], [-1]], [[-1], [5], [-1]]]


def test_inputs_are_allocated_once() -> None:
    class Recording(FakeCausalLM):
        def run(self, inputs: Any) -> Any:
            self.seen = {*getattr(self, "seen", ()), *(array.ctypes.data for array in inputs.values())}
            return super().run(inputs)

    session = Recording(batch_size=2, prefill=3, ctx_len=64)
    generator = TextGenerator(session)
    generator.generate([[1, 2, 3, 4], [5]], max_new_tokens=40)
    generator.generate([[1, 2]], max_new_tokens=30)
    assert len(session.seen) == 4, "ids and positions of prefill and decode"


def test_a_generation_after_an_interrupt_starts_afresh() -> None:
    session = FakeCausalLM(prefill=2, ctx_len=32)
    generator = TextGenerator(session)
    session.fail_at = (4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        generator.generate([[1, 2, 3, 4]], max_new_tokens=20)
    session.fail_at = None
    assert generator.generate([[7, 8, 9]], max_new_tokens=6).generated_ids == [expected_tokens([7, 8, 9], 6)]


def test_threads_take_turns() -> None:
    class Slow(FakeCausalLM):
        def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            time.sleep(0.0005)  # lets other threads go on
            return super().run(inputs)

    generator = TextGenerator(Slow(prefill=2, ctx_len=32))
    prompts = [[1, 2, 3], [4, 5], [6]] * 4
    with ThreadPoolExecutor(3) as threads:
        outputs = list(threads.map(lambda prompt: generator.generate([prompt], max_new_tokens=4), prompts))
    assert [output.generated_ids[0] for output in outputs] == [expected_tokens(prompt, 4) for prompt in prompts]


def test_a_generator_notices_that_another_one_has_used_its_session(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folders["byte_level"])
    session = FakeCausalLM(prefill=2, ctx_len=32, vocab=len(tokenizer))
    stream = TextGenerator(session, tokenizer).stream([[1, 2]], max_new_tokens=9)
    next(stream)
    TextGenerator(session).generate([[3]], max_new_tokens=2)
    with pytest.raises(ExecutionError, match="another generation has started on this session"):
        list(stream)


def test_takes_what_tokenizers_return() -> None:
    generator = TextGenerator(FakeCausalLM(batch_size=2))
    rows = [[4, 5, 6], [9]]
    expected = [expected_tokens(row, 3) for row in rows]
    left = {"input_ids": np.array([[4, 5, 6], [0, 0, 9]]), "attention_mask": np.array([[1, 1, 1], [0, 0, 1]])}
    right = {"input_ids": [[4, 5, 6], [9, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    for inputs in (rows, left, right):
        assert generator.generate(inputs, max_new_tokens=3).generated_ids == expected
    assert generator.generate(np.array([4, 5, 6]), max_new_tokens=3).generated_ids == expected[:1]


def test_on_token_sees_every_token_in_order() -> None:
    seen: dict[int, list[int]] = {0: [], 1: []}
    generator = TextGenerator(FakeCausalLM(batch_size=2))
    output = generator.generate([[1], [2, 3]], max_new_tokens=5, on_token=lambda row, token: seen[row].append(token))
    assert list(seen.values()) == output.generated_ids


def test_stop_strings_end_a_row_also_across_tokens() -> None:
    class Letters:
        bos_token_id = eos_token_id = pad_token_id = chat_template = None

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) - ord("a") for letter in text]

        def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
            return "".join(chr(ord("a") + token) for token in ids)

        def vocabulary(self) -> dict[str, int]:
            return {chr(ord("a") + token): token for token in range(VOCAB)}

    generator = TextGenerator(FakeCausalLM(ctx_len=64), Letters())
    text = generator.generate("ab", max_new_tokens=20).generated_texts[0]
    stop = text[6:9]
    output = generator.generate("ab", max_new_tokens=20, stop_strings=["never!", stop])
    assert output.generated_texts == [text[: text.index(stop) + 3]]
    assert output.finish_reasons == ["stop_string"]
    with pytest.raises(InputError, match="stop_strings need a tokenizer"):
        TextGenerator(FakeCausalLM()).generate([[1]], stop_strings="x")


@pytest.fixture(scope="module")
def byte_level(tokenizer_folders: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folders["byte_level"])


@settings(max_examples=60)
@given(
    text=st.text("the quick", min_size=4, max_size=14),
    cut=st.integers(1, 6),
    stops=st.lists(st.text("the quick", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_stop_strings_match_where_transformers_matches_them(
    byte_level: Any, text: str, cut: int, stops: list[str]
) -> None:
    """They end in the newest token, and may begin in the prompt."""
    ids = byte_level.encode(text)
    prompt, generated = ids[:cut], ids[cut:]
    row = Row(index=0, prompt=prompt, limit=len(ids) + 1)
    rules = StopRules(GenerationSettings(stop_strings=tuple(stops)), [row], tokenizer=as_text_tokenizer(byte_level))
    theirs = StopStringCriteria(byte_level, stops)
    for token in generated:
        row.generated.append(token)
        expected = bool(theirs(torch.tensor([[*prompt, *row.generated]]), None))
        assert (rules.reason(row, token) == "stop_string") == expected


def test_time_limit_ends_all_rows() -> None:
    output = TextGenerator(FakeCausalLM(batch_size=2, ctx_len=512)).generate([[1], [2]], max_time=1e-6)
    assert output.finish_reasons == ["max_time", "max_time"]
    assert [len(ids) for ids in output.generated_ids] == [1, 1]


def test_max_length_counts_the_prompt_of_each_row() -> None:
    output = TextGenerator(FakeCausalLM(batch_size=2)).generate([[1, 2, 3], [4]], max_length=6)
    assert [len(ids) for ids in output.generated_ids] == [3, 5]


def test_metrics_add_up() -> None:
    output = TextGenerator(FakeCausalLM(batch_size=2)).generate([[1, 2, 3], [4]], max_new_tokens=8)
    metrics = output.perf_metrics
    assert metrics.decode_steps == 7
    assert 0 < metrics.prefill_time < metrics.total_time
    assert metrics.total_perf == pytest.approx(16 / metrics.total_time)
    assert metrics.decode_perf == pytest.approx(14 / (metrics.total_time - metrics.prefill_time))
    assert "[1] 1 prompt tokens, 8 new tokens, ended by length" in str(output)
    assert "tokens/s" in str(output)
    single = TextGenerator(FakeCausalLM()).generate([[1]], max_new_tokens=1).perf_metrics
    assert (single.decode_steps, single.decode_perf) == (0, 0.0)


@pytest.mark.parametrize(
    ("prompts", "keywords", "message"),
    [
        ([], {}, "no prompts were given"),
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[1], [2], [3]], {}, r"3 prompts were given, the program takes 2 at once; compile with batch_size=3"),
        ([[1] * 5], {"max_new_tokens": 12}, r"5 tokens, and 12 new ones make 17.*ctx_len=16.*at most 11.*ctx_len=17"),
        ([[1] * 16], {}, r"prompt 0 has 16 tokens, which leaves no room .* ctx_len=16.*compile with ctx_len=17"),
        ([[1, VOCAB]], {}, rf"token id {VOCAB}, the model knows 0 to {VOCAB - 1}"),
        ([[1, -1]], {}, "token id -1"),
        ([[1]], {"generation_len": 0}, "at least 1"),
        ([[1, 2]], {"max_length": 2}, "max_length=2 counts the prompt, which has 2 tokens"),
        ("text", {}, "needs a tokenizer"),
        ([[1.5]], {}, "whole numbers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, {}, "attention_mask has rows of"),
        ({"attention_mask": [[1]]}, {}, "no input_ids"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_the_first_step(prompts: Any, keywords: Any, message: str) -> None:
    session = FakeCausalLM(batch_size=2, ctx_len=16)
    with pytest.raises(InputError, match=message):
        TextGenerator(session).generate(prompts, **keywords)
    assert session.steps == []


def test_complete_settings_take_no_additions() -> None:
    with pytest.raises(OptionError, match="settings are complete, max_new_tokens cannot be added"):
        TextGenerator(FakeCausalLM()).generate([[1]], GenerationSettings(), max_new_tokens=3)


@pytest.mark.parametrize(
    ("place", "number", "told"),
    [(4, np.nan, "contain NaN"), (4, np.inf, "contain infinity"), (slice(None), -np.inf, "are all -inf")],
)
def test_logits_that_are_not_numbers_are_an_error(place: Any, number: float, told: str) -> None:
    class Broken(FakeCausalLM):
        def model(self, history: Any) -> np.ndarray:
            logits = super().model(history)
            if len(history) == 6:
                logits[place] = number
            return logits

    for keywords in ({}, {"repetition_penalty": 1.2}):
        with pytest.raises(ExecutionError, match=f"logits of prompt 0 at position 5 {told}"):
            TextGenerator(Broken()).generate([[1, 2, 3]], max_new_tokens=9, **keywords)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"batch_size": 1, "seq_len": 8, "ctx_len": 32}], "no decode entry"),
        (
            [{"batch_size": 1, "seq_len": 8, "ctx_len": 32}, {"batch_size": 4, "seq_len": 1, "ctx_len": 32}],
            r"one batch_size and ctx_len in common, found \[\(1, 32\), \(4, 32\)\]",
        ),
    ],
)
def test_programs_of_other_shapes_are_refused(entries: list[dict[str, int]], message: str) -> None:
    session = FakeCausalLM()
    object.__setattr__(
        session.compiled, "specializations", tuple(Specialization(name=str(i), dims=d) for i, d in enumerate(entries))
    )
    with pytest.raises(InputError, match=message):
        TextGenerator(session)


def test_programs_of_other_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="compiled for encoder"):
        TextGenerator(FakeEncoder())


def test_a_session_is_released_with_its_generators() -> None:
    session = FakeCausalLM(1, 4, 16)
    TextGenerator(session).generate_ids([[1]], GenerationSettings(max_new_tokens=1))
    known = weakref.ref(session)
    del session
    gc.collect()
    assert known() is None
