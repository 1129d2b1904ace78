"""Requests that join and leave at any step: each gets what it gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qeff_framework.contracts import SAMPLER_INPUTS
from qeff_framework.errors import ExecutionError
from qeff_framework.generation import GenerationSettings, TextGenerator
from qeff_framework.generation.request import Request
from tests.generation.fakes import FakeCausalLM, FakeContinuous, FakeSampler, FakeSpeculative

CTX_LEN = 24
PREFILLS = st.one_of(st.integers(1, 6), st.sets(st.integers(2, 9), min_size=1, max_size=3).map(tuple))
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=15)


def asked(draw_sample: bool, new_tokens: int, eos: tuple[int, ...], lookup: int | None) -> GenerationSettings:
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 5, "seed": 3} if draw_sample else {}
    return GenerationSettings(
        max_new_tokens=new_tokens,
        eos_token_ids=eos,
        prompt_lookup_num_tokens=lookup,
        repetition_penalty=1.3,
        **sampling,
    )


class Requests(RuleBasedStateMachine):
    """Adds, steps and cancels at random."""

    @initialize(lanes=st.integers(1, 3), spare=st.integers(0, 2), prefill=PREFILLS, kind=st.integers(0, 2))
    def load(self, lanes: int, spare: int, prefill: int | tuple[int, ...], kind: int) -> None:
        self.drafts = None
        session: Any
        if kind == 0:
            session = FakeCausalLM(lanes, prefill, CTX_LEN)
        elif kind == 1:
            session = FakeContinuous(lanes, lanes + spare, prefill, CTX_LEN)
        else:
            session, self.drafts = FakeSpeculative(2, rows=lanes, slots=lanes + spare, ctx_len=CTX_LEN), 2
        self.session = session
        self.generator = TextGenerator(session)
        self.scheduler = self.generator.scheduler
        self.running: dict[Request, tuple[list[list[int]], GenerationSettings]] = {}
        self.received: dict[Request, dict[int, list[int]]] = {}

    @rule(
        prompts=st.lists(PROMPTS, min_size=1, max_size=2),
        draw_sample=st.booleans(),
        new_tokens=st.integers(1, 8),
        eos=st.lists(st.integers(0, 16), max_size=2),
        priority=st.integers(-1, 1),
        with_drafts=st.booleans(),
    )
    def add(self, prompts: Any, draw_sample: bool, new_tokens: int, eos: Any, priority: int, with_drafts: bool) -> None:
        prompts = prompts[: self.generator.shape.batch_size]
        given = asked(draw_sample, new_tokens, tuple(eos), self.drafts if with_drafts else None)
        request = self.generator.request(prompts, given)
        self.running[request] = prompts, asked(draw_sample, new_tokens, tuple(eos), None)
        self.received[request] = {index: [] for index in range(len(prompts))}
        self.scheduler.add(request, priority)

    @precondition(lambda self: self.scheduler.busy)
    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            before = len(self.session.steps)
            for token in self.scheduler.step():
                self.received[token.request][token.row].append(token.token)
            assert len(self.session.steps) - before <= 1, "one step runs the program once"
        for request in [request for request in self.running if request.finished]:
            self.check(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        request = data.draw(st.sampled_from(list(self.running)))
        self.scheduler.end(request, "cancelled")
        assert request.finished
        del self.running[request]

    @invariant()
    def no_more_rows_than_there_are(self) -> None:
        alive = sum(not row.finished for request in self.running for row in request.rows)
        assert self.scheduler.running + self.scheduler.waiting == alive

    def check(self, request: Request) -> None:
        prompts, given = self.running.pop(request)
        assert request.error is None
        for index, prompt in enumerate(prompts):
            expected = self.expected(prompt, given, index)
            assert request.rows[index].generated == self.received[request][index] == expected

    def expected(self, prompt: list[int], given: GenerationSettings, index: int) -> list[int]:
        # The random numbers of a row depend on its place in the request.
        wide = TextGenerator(FakeCausalLM(index + 1, 4, CTX_LEN))
        return wide.generate_ids([prompt] * (index + 1), given).generated_ids[index]

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.scheduler.busy:
                break
            for token in self.scheduler.step():
                self.received[token.request][token.row].append(token.token)
        for request in list(self.running):
            self.check(request)
        assert self.scheduler.running == self.scheduler.waiting == 0


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
test_every_request_gets_what_it_gets_alone = Requests.TestCase


@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ([100], [128]),  # less padding than a half
        ([300], [512]),
        ([130], [128, 32]),
        ([700], [512, 128, 32, 32]),
        ([20, 1], [32]),
        ([5], [32]),
        ([150, 20], [128, 32]),  # the longest prompt decides
    ],
)
def test_a_chunk_takes_the_program_that_fits_what_is_left(lengths, chunks):
    session = FakeCausalLM(len(lengths), (512, 32, 128), ctx_len=1024)
    generator = TextGenerator(session)

    generator.generate_ids([[1] * length for length in lengths], GenerationSettings(max_new_tokens=1))

    assert [step["input_ids"].shape[1] for step in session.steps] == chunks


def drain(generator: TextGenerator, *requests: Request) -> None:
    for request in requests:
        generator.scheduler.add(request)
    while generator.scheduler.busy:
        generator.scheduler.step()


@pytest.mark.parametrize("slots", [None, 2])
def test_a_request_that_fails_leaves_the_others_alone(slots: int | None) -> None:
    class BrokenError(ValueError):
        pass

    def fail(ids: Any, scores: Any) -> Any:
        if ids.shape[1] == 5:
            raise BrokenError
        return scores

    generator = TextGenerator(FakeContinuous(2, slots) if slots else FakeCausalLM(2))
    given = GenerationSettings(max_new_tokens=6)
    bad = generator.request([[1, 2, 3]], given, logits_processor=[fail])
    good, later = generator.request([[4, 5]], given), generator.request([[6]], given)
    drain(generator, bad, good, later)
    assert isinstance(bad.error, BrokenError)
    assert bad.rows[0].finish_reason == "error"
    for request, prompt in ((good, [4, 5]), (later, [6])):
        assert request.rows[0].generated == generator.generate([prompt], max_new_tokens=6).generated_ids[0]
    with pytest.raises(BrokenError):
        generator.generate([[1, 2, 3]], max_new_tokens=6, logits_processor=[fail])


def test_settings_of_a_device_sampler_belong_to_the_row() -> None:
    session = FakeSampler(batch_size=2)
    generator = TextGenerator(session)
    first = generator.request([[1, 2]], generator.settings(max_new_tokens=6))
    second = generator.request(
        [[3]], generator.settings(max_new_tokens=6, do_sample=True, temperature=0.5, top_k=4, seed=1)
    )
    drain(generator, first, second)
    decodes = [fed for fed in session.fed if fed["input_ids"].shape[1] == 1]
    assert decodes
    for fed in decodes:
        assert fed["temperatures"].ravel().tolist() == [0.0, 0.5]
        assert fed["top_ks"].ravel().tolist()[1] == 4
    assert set(SAMPLER_INPUTS) < set(decodes[0])


def test_after_a_failure_of_the_program_a_reset_helps() -> None:
    session = FakeContinuous(2, 2)
    generator = TextGenerator(session)
    request = generator.request([[1, 2]], GenerationSettings(max_new_tokens=6))

    def fail(_: Any) -> Any:
        raise ExecutionError("device lost")

    run, session.run = session.run, fail  # type: ignore[method-assign]
    with pytest.raises(ExecutionError, match="device lost"):
        drain(generator, request)
    session.run = run  # type: ignore[method-assign]
    generator.scheduler.reset()
    assert not generator.scheduler.busy
    again = generator.request([[1, 2]], GenerationSettings(max_new_tokens=6))
    drain(generator, again)
    assert np.array_equal(again.rows[0].generated, generator.generate([[1, 2]], max_new_tokens=6).generated_ids[0])


def test_a_prefix_is_shared_across_requests() -> None:
    session = FakeContinuous(batch_size=1, slots=2, prefill=2, ctx_len=32)
    generator = TextGenerator(session)
    counts = []
    for last in (9, 12):
        before = len(session.steps)
        drain(generator, generator.request([[1, 2, 3, 4, 5, 6, 7, last]], GenerationSettings(max_new_tokens=1)))
        counts.append(len(session.steps) - before)
    assert counts == [4, 1]
