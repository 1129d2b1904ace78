"""Continuous batching: more prompts than rows, and each gets what it would get alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_framework.contracts import SAMPLER_INPUTS
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation import GenerationSettings, TextGenerator
from qeff_framework.generation.placement import Placement
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.rows import Row
from tests.generation.fakes import VOCAB, FakeCausalLM, FakeContinuous, FakeSampler, expected_tokens

tokens = st.integers(0, VOCAB - 1)


@st.composite
def generations(draw: st.DrawFn) -> dict[str, Any]:
    ctx_len = draw(st.integers(4, 24))
    rows = draw(st.integers(1, 4))
    # Few different tokens, so that prompts often begin alike.
    prompts = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=ctx_len - 2), min_size=1, max_size=9))
    longest = max(map(len, prompts))
    return {
        "prompts": prompts,
        "rows": rows,
        "slots": rows + draw(st.integers(0, 3)),
        "fewer": draw(st.sets(st.integers(1, 3))),
        "more": draw(st.sets(st.integers(2, 4))),
        "prefill": draw(st.integers(1, ctx_len)),
        "ctx_len": ctx_len,
        # Prompt and answer together, so that the answers differ in length.
        "max_length": draw(st.none() | st.integers(longest + 1, ctx_len)),
        "eos": draw(st.lists(tokens, max_size=3)),
    }


@settings(max_examples=300)
@given(generations())
def test_every_prompt_gets_what_it_gets_alone(case: dict[str, Any]) -> None:
    fewer = [rows for rows in case["fewer"] if rows < case["rows"]]
    more = [rows for rows in case["more"] if rows <= case["rows"] and case["prefill"] > 1]
    session = FakeContinuous(case["rows"], case["slots"], case["prefill"], case["ctx_len"], fewer=fewer, more=more)
    asked = GenerationSettings(max_length=case["max_length"], eos_token_ids=tuple(case["eos"]))
    output = TextGenerator(session).generate_ids(case["prompts"], asked)

    limit = case["max_length"] or case["ctx_len"]
    expected = [expected_tokens(prompt, limit - len(prompt), case["eos"]) for prompt in case["prompts"]]
    assert output.generated_ids == expected
    assert len(output.finish_reasons) == len(expected)
    assert output.perf_metrics.decode_steps == sum(
        step["input_ids"].shape not in [(rows, case["prefill"]) for rows in (1, *more)] for step in session.steps
    ) or (case["prefill"] == 1 and 1 in (case["rows"], *fewer))
    # No prefill step has more rows than the smallest program for its prompts.
    for positions in (step["position_ids"] for step in session.steps if step["position_ids"].shape[1] > 1):
        assert len(positions) == min(rows for rows in (1, *more) if rows >= (positions[:, 0] >= 0).sum())
    # No step computes more rows than the smallest program for those that decode.
    decodes = [step["position_ids"] for step in session.steps if case["prefill"] > 1 == step["position_ids"].shape[1]]
    for positions in decodes:
        fitting = [rows for rows in (*fewer, case["rows"]) if rows >= (positions >= 0).sum()]
        assert len(positions) == min(fitting)


def test_rows_of_a_sampler_keep_their_lanes() -> None:
    """The program knows the settings of a row by its lane, so that no decode program of fewer rows may take it elsewhere."""
    compiled = FakeContinuous(batch_size=3, slots=3, fewer=[1]).compiled
    assert len(ProgramShape.of(compiled).fewer_rows) == 1
    tokens, positions, rest = compiled.inputs[0], compiled.inputs[1], compiled.inputs[2:]
    sampling = [each for each in FakeSampler().compiled.inputs if each.name in SAMPLER_INPUTS]
    assert ProgramShape.of(replace(compiled, inputs=(tokens, positions, *sampling, *rest))).fewer_rows == ()


def test_rules_hold_for_each_prompt_by_itself() -> None:
    rules: dict[str, Any] = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "suppress_tokens": [4, 9]}
    rules |= {"encoder_no_repeat_ngram_size": 1, "eos_token_id": [1, 2], "min_new_tokens": 3, "forced_eos_token_id": 5}
    prompts = [[0, 1, 2], [7], [7, 8, 9, 7, 8], [0, 1, 2, 3], [11, 12]]
    generator = TextGenerator(FakeContinuous(2, 3, 4, 24), generation_defaults=rules)
    alone = TextGenerator(FakeCausalLM(ctx_len=24), generation_defaults=rules)
    expected = [alone.generate([prompt], max_new_tokens=9).generated_ids[0] for prompt in prompts]
    assert generator.generate(prompts, max_new_tokens=9).generated_ids == expected
    assert len({len(ids) for ids in expected}) > 1, "some rows take the place of others"


def test_others_decode_while_a_long_prompt_is_prefilled_and_no_lane_stays_idle() -> None:
    session = FakeContinuous(batch_size=2, slots=2, prefill=2, ctx_len=40)
    short, long = [3, 1], [5] * 12
    TextGenerator(session).generate_ids([short, long, short], GenerationSettings(max_new_tokens=12))
    kinds = ["prefill" if step["input_ids"].shape == (1, 2) else "decode" for step in session.steps]
    # The first prompt needs one chunk; half of the lanes decode then, so each chunk of the long one is followed by a step.
    assert kinds[:12] == ["prefill"] + ["decode", "prefill"] * 5 + ["decode"]
    # The third prompt comes as soon as the first has finished, not when the second has.
    assert kinds.count("prefill") == 1 + 6 + 1
    third = max(index for index, kind in enumerate(kinds) if kind == "prefill")
    assert "decode" in kinds[third:]
    assert session.steps[third]["batch_index"].tolist() == [[0]]


def test_prompts_are_read_side_by_side_and_none_waits_for_a_longer_one() -> None:
    session = FakeContinuous(batch_size=3, slots=3, prefill=4, ctx_len=40, more=[2, 3])
    prompts = [[5] * 12, [1, 2, 3], [4] * 6, [7, 8]]
    output = TextGenerator(session).generate_ids(prompts, GenerationSettings(max_new_tokens=3))
    assert output.generated_ids == [expected_tokens(prompt, 3) for prompt in prompts]
    shapes = [step["input_ids"].shape for step in session.steps]
    assert shapes[:3] == [(3, 4), (2, 4), (3, 1)], "two prompts decode before the first one is read"


def test_a_spare_slot_spares_the_prefill_of_what_prompts_have_in_common() -> None:
    common = [1, 2, 3, 4, 5, 6, 7, 8]
    prompts = [[*common, 9], [10, 11], [*common, 12], [*common, 9]]
    counts = {}
    for slots in (1, 2):
        session = FakeContinuous(batch_size=1, slots=slots, prefill=3, ctx_len=20)
        output = TextGenerator(session).generate_ids(prompts, GenerationSettings(max_new_tokens=2))
        assert output.generated_ids == [expected_tokens(prompt, 2) for prompt in prompts]
        counts[slots] = sum(step["input_ids"].shape == (1, 3) for step in session.steps)
    assert counts == {1: 3 + 1 + 3 + 3, 2: 3 + 1 + 1 + 1}


@pytest.mark.parametrize("end", ["length", "eos"])
def test_a_prompt_that_goes_on_behind_a_whole_answer_reads_the_last_token_of_it(end: str) -> None:
    """As the next turn of a conversation does: the last token of an answer was chosen and never fed, so no slot holds it."""
    first = [1, 2, 3]
    answer = expected_tokens(first, 4)
    prompts = [first, [*first, *answer, 5]]
    eos = answer[-1:] if end == "eos" else []
    assert end == "length" or answer.index(answer[-1]) == 3
    output = TextGenerator(FakeContinuous(batch_size=1, slots=2, prefill=3, ctx_len=20)).generate_ids(
        prompts, GenerationSettings(max_new_tokens=4, eos_token_ids=tuple(eos))
    )
    assert output.generated_ids == [answer, expected_tokens(prompts[1], 4, eos)]


def test_steps_read_no_more_of_the_cache_than_they_need() -> None:
    session = FakeContinuous(2, 2, prefill=4, ctx_len=32, contexts=((8, 16), (10, 20)))
    prompts = [[1, 2, 3], [4] * 15, [7] * 6]
    output = TextGenerator(session).generate_ids(prompts, GenerationSettings(max_length=26))
    assert output.generated_ids == [expected_tokens(prompt, 26 - len(prompt)) for prompt in prompts]
    assert {len(step["comp_ctx_lengths"]) for step in session.steps} == {8, 16, 10, 20, 32}
    with pytest.raises(
        InputError, match=r"has 17 tokens, the prefill programs read 16 at most.*comp_ctx_lengths_prefill"
    ):
        TextGenerator(session).generate([[1] * 17], max_new_tokens=2)


def test_inputs_are_allocated_once() -> None:
    class Recording(FakeContinuous):
        def run(self, inputs: Any) -> Any:
            self.seen = {*getattr(self, "seen", ()), *(array.ctypes.data for array in inputs.values())}
            return super().run(inputs)

    session = Recording(batch_size=2, slots=3, prefill=3, ctx_len=64)
    generator = TextGenerator(session)
    generator.generate([[1, 2, 3, 4], [5], [6, 7], [8]], max_new_tokens=20)
    generator.generate([[1, 2]], max_new_tokens=30)
    assert len(session.seen) == 6, "ids, positions and slots of prefill and decode"


def test_order_streams_and_interrupts() -> None:
    session = FakeContinuous(batch_size=2, slots=2, prefill=4, ctx_len=32)
    generator = TextGenerator(session)
    prompts = [[index + 1] * (index % 3 + 1) for index in range(5)]
    seen: dict[int, list[int]] = {index: [] for index in range(5)}
    output = generator.generate(prompts, max_new_tokens=4, on_token=lambda row, token: seen[row].append(token))
    assert list(seen.values()) == output.generated_ids == [expected_tokens(prompt, 4) for prompt in prompts]
    assert output.batch_size == 2
    metrics = output.perf_metrics
    assert 0 < metrics.time_to_first_token <= metrics.prefill_time < metrics.total_time
    assert metrics.decode_perf == pytest.approx(15 / (metrics.total_time - metrics.prefill_time))
    # A sampler keeps a state for each prompt, whatever row of the step the prompt has.
    penalised = generator.generate(prompts, max_new_tokens=4, repetition_penalty=1.5).generated_ids
    alone = [
        generator.generate([prompt], max_new_tokens=4, repetition_penalty=1.5).generated_ids[0] for prompt in prompts
    ]
    assert penalised == alone

    class StopHereError(Exception):
        pass

    def stop(row: int, token: int) -> None:
        if row == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        generator.generate(prompts, max_new_tokens=4, on_token=stop)
    assert generator.generate(prompts[:1], max_new_tokens=4).generated_ids == output.generated_ids[:1]


def test_a_generation_that_lost_the_session_stops() -> None:
    class Letters:
        bos_token_id = eos_token_id = pad_token_id = chat_template = None

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) - ord("a") for letter in text]

        def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
            return "".join(chr(ord("a") + token) for token in ids)

        def vocabulary(self) -> dict[str, int]:
            return {chr(ord("a") + token): token for token in range(VOCAB)}

    generator = TextGenerator(FakeContinuous(1, 1), Letters())
    stream = generator.stream("abc", max_new_tokens=9)
    next(stream)
    generator.generate("d", max_new_tokens=2)
    with pytest.raises(ExecutionError, match="another generation has started"):
        list(stream)


def test_the_slot_is_given_up_that_was_not_used_for_longest() -> None:
    placement = Placement(lanes=1, slots=3, fill_at_once=1, together=False, reuse=True)
    placement.add(Row(index=index, prompt=[index, 0], limit=1) for index in range(4))
    slots = []
    while placement.busy:
        (row,) = placement.admit()
        slots.append(placement.slot(row.lane))
        row.prefilled = 2
        placement.filled()
        row.generated.append(0)
        row.finish_reason = "length"
        placement.release()
    assert sorted(slots[:3]) == [0, 1, 2]
    assert slots[3] == slots[0]
