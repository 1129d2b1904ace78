"""Engines: requests by number, their pieces, limits, and a worker thread for asyncio."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework.errors import EngineClosedError, ExecutionError, InputError, OptionError, QueueFullError
from qeff_framework.runtime import CompiledCausalLM
from qeff_framework.serving import AsyncEngine, Delta, Engine
from tests.generation.fakes import expected_tokens
from tests.serving.programs import drafted, program

USER = [{"role": "user", "content": "The fox"}]


def joined(pieces: list[Delta], index: int = 0) -> tuple[str, list[int], str | None]:
    mine = [piece for piece in pieces if piece.index == index]
    return "".join(piece.text for piece in mine), [t for piece in mine for t in piece.tokens], mine[-1].finish_reason


@pytest.mark.parametrize("slots", [None, 3])
def test_requests_get_what_generate_gives(artifact: Path, slots: int | None) -> None:
    alone, engine = program(artifact), Engine(program(artifact, slots=slots))
    sampled: dict[str, Any] = {"do_sample": True, "top_k": 9, "seed": 5, "max_new_tokens": 12}
    first = engine.add("The quick brown fox", max_new_tokens=20)
    second = engine.add("It's what", n=2, **sampled)
    third = engine.add(USER, max_new_tokens=9, priority=-1)
    pieces = {number: list(engine.stream(number)) for number in (second, first, third)}
    greedy = alone.generate(prompts="The quick brown fox", max_new_tokens=20)
    assert joined(pieces[first]) == (greedy.generated_texts[0], greedy.generated_ids[0], greedy.finish_reasons[0])
    drawn = alone.generate(prompts=["It's what"] * 2, **sampled)
    for index in range(2):
        assert joined(pieces[second], index)[:2] == (drawn.generated_texts[index], drawn.generated_ids[index])
    assert drawn.generated_ids[0] != drawn.generated_ids[1]
    assert joined(pieces[third])[1] == alone.generate(prompts=USER, max_new_tokens=9).generated_ids[0]
    assert not engine.busy
    with pytest.raises(InputError, match=f"no request {first}"):
        engine.stream(first)


@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize("kind", ["draft model", "prompt lookup"])
def test_drafts_change_the_steps_and_no_token(tmp_path: Path, slots: int | None, kind: str) -> None:
    draft = drafted(tmp_path, 0, share=2) if kind == "draft model" else None
    further: dict[str, Any] = {"draft": draft} if draft else {"prompt_lookup_num_tokens": 3}
    runner = drafted(tmp_path, 3, slots=slots)
    engine = Engine(runner, **further)
    sampled: dict[str, Any] = {"do_sample": True, "seed": 5, "top_k": 4}
    asked = [
        ([1, 2, 3] * 4, 30, {}),
        ([4], 17, {"logprobs": 2}),
        ([5, 6] * 5, 25, sampled),
        ([7], 9, {}),
        ([8] * 9, 20, {}),
    ]
    jobs = [engine.prepare(prompt, max_new_tokens=count, **options) for prompt, count, options in asked]
    jobs.append(engine.prepare([9, 2], max_new_tokens=12, prompt_lookup_num_tokens=2))
    answers = {engine.submit(job): job for job in jobs}
    for (number, job), (prompt, count, options) in zip(answers.items(), [*asked, ([9, 2], 12, {})], strict=True):
        pieces = list(engine.stream(number))
        tokens, reason = joined(pieces)[1:]
        plain = Engine(drafted(tmp_path, 3))
        assert joined(list(plain.stream(plain.add(prompt, max_new_tokens=count, **options))))[1:] == (tokens, reason)
        assert job.request.drafts_proposed > 0
        if "logprobs" in options:
            assert [entry.token for piece in pieces for entry in piece.logprobs] == tokens
    session, proposer = _steps(runner), _steps(draft) if draft else []
    if draft:
        assert sum(job.request.drafts_accepted for job in jobs) > 40
        # The rows of two requests decode ahead in the same steps.
        assert any((step["position_ids"][:, 0] > 0).all() for step in proposer)
    assert any((step["position_ids"][:, :2] > 0).all() for step in session if step["position_ids"].shape[0] == 2)


def test_a_draft_model_that_fails_is_empty_afterwards(tmp_path: Path) -> None:
    draft, expected = drafted(tmp_path, 0), expected_tokens([1, 2], 8)
    session: Any = draft.session
    engine = Engine(drafted(tmp_path, 2), draft=draft)
    resets: list[bool] = []
    session.reset = lambda: resets.append(True)
    run, session.run = session.run, None
    with pytest.raises(TypeError):
        list(engine.stream(engine.add([1, 2], max_new_tokens=8)))
    session.run = run
    assert resets
    assert joined(list(engine.stream(engine.add([1, 2], max_new_tokens=8))))[1] == expected


def test_drafts_that_the_program_cannot_check_are_refused(tmp_path: Path, artifact: Path) -> None:
    with pytest.raises(InputError, match="compile it with num_speculative_tokens=4"):
        Engine(drafted(tmp_path, 0), draft=drafted(tmp_path, 0))
    with pytest.raises(InputError, match="prompt_lookup_num_tokens=3: the program checks at most 2"):
        Engine(drafted(tmp_path, 2), prompt_lookup_num_tokens=3)
    with pytest.raises(InputError, match="it batches continuously; compile it with batch_size=2"):
        Engine(drafted(tmp_path, 2), draft=drafted(tmp_path, 0, slots=2))


def _steps(runner: CompiledCausalLM) -> list[dict[str, Any]]:
    session: Any = runner.session
    steps: list[dict[str, Any]] = session.steps
    return steps


def test_a_stop_string_is_left_out_also_across_pieces(artifact: Path) -> None:
    engine = Engine(program(artifact))
    text = joined(list(engine.stream(engine.add("The fox", max_new_tokens=40))))[0]
    stop = text[3:6]
    pieces = list(engine.stream(engine.add("The fox", max_new_tokens=40, stop_strings=[stop, "never there, and long"])))
    assert joined(pieces)[0] == text[: text.index(stop)]
    assert joined(pieces)[2] == "stop_string"


def test_a_cancelled_request_frees_its_row(artifact: Path) -> None:
    engine = Engine(program(artifact, lanes=1))
    first, second = (engine.add("The fox", max_new_tokens=30, ignore_eos=True) for _ in range(2))
    stream = engine.stream(first)
    next(stream)
    stream.close()
    assert engine.running == 0
    assert len(joined(list(engine.stream(second)))[1]) == 30
    engine.cancel(second)
    assert not engine.busy


def test_a_full_queue_refuses(artifact: Path) -> None:
    engine = Engine(program(artifact, lanes=1), max_queue=2)
    ids = [engine.add("a", max_new_tokens=2) for _ in range(3)]
    with pytest.raises(QueueFullError, match="3 answers are waiting.*max_queue=2; try again later"):
        engine.add("a", max_new_tokens=2)
    # One of them runs, and nothing has left the queue for good.
    engine.step()
    with pytest.raises(QueueFullError, match="2 answers are waiting"):
        engine.add("a", max_new_tokens=2)
    while engine.step():
        pass
    assert [len(joined(list(engine.stream(number)))[1]) for number in ids] == [2, 2, 2]
    engine.add("a", max_new_tokens=2)
    with pytest.raises(OptionError, match="n=3 must be at least 1 and at most max_queue=2"):
        engine.add("a", n=3)


def test_deadlines_and_lengths(artifact: Path) -> None:
    engine = Engine(program(artifact, lanes=1, delay=0.002), max_model_len=40)
    first = engine.add("The fox", ignore_eos=True)
    late = engine.add("The fox", deadline=1e-6)
    assert joined(list(engine.stream(late))) == ("", [], "max_time")
    ids = joined(list(engine.stream(first)))[1]
    assert len(ids) == 40 - len(engine.generator.tokenized("The fox", engine.generator.settings()).ids[0])
    with pytest.raises(InputError, match=r"more than max_model_len=40; ask for at most \d+ new tokens"):
        engine.add("The fox", max_new_tokens=39)
    with pytest.raises(InputError, match="leaves no room for new ones in max_model_len=40"):
        engine.add([5] * 41)


def test_nothing_is_kept_of_requests_that_have_ended(artifact: Path) -> None:
    engine = Engine(program(artifact, lanes=2))
    delivered: list[Delta] = []
    first = engine.add("The fox", deadline=60, max_new_tokens=100, ignore_eos=True)
    for _ in range(300):
        engine.submit(engine.prepare("a", deadline=600, max_new_tokens=1, deliver=delivered.append))
        while engine.waiting or engine.running > 1:
            engine.step()
    assert len(delivered) == 300
    assert len(engine._jobs) <= 1
    assert len(engine._deadlines) < 100
    assert engine._jobs.keys() <= {first}


def test_log_probabilities_are_those_of_the_logits(artifact: Path) -> None:
    runner = program(artifact)
    engine = Engine(runner)
    (prompt,) = engine.generator.tokenized("The fox", engine.generator.settings()).ids
    pieces = list(engine.stream(engine.add(prompt, max_new_tokens=4, logprobs=3, repetition_penalty=1.5)))
    entries = [entry for piece in pieces for entry in piece.logprobs]
    assert [entry.token for entry in entries] == joined(pieces)[1]
    session: Any = runner.session
    history = list(prompt)
    for entry in entries:
        logits = session.model(history).astype(np.float64)
        expected = logits - math.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert entry.logprob == pytest.approx(expected[entry.token])
        assert [token for token, _ in entry.top] == np.argsort(-expected, kind="stable")[:3].tolist()
        history.append(entry.token)


def test_a_failure_of_the_program_ends_all_requests_and_nothing_else(artifact: Path) -> None:
    runner = program(artifact)
    engine = Engine(runner)
    session: Any = runner.session
    expected = joined(list(engine.stream(engine.add("The fox", max_new_tokens=5))))
    session.fail_at = (len(session.steps) + 2, ExecutionError("device lost"))
    ids = [engine.add("The fox", max_new_tokens=5) for _ in range(3)]
    for number in ids:
        with pytest.raises(ExecutionError, match="device lost"):
            list(engine.stream(number))
    session.fail_at = None
    assert joined(list(engine.stream(engine.add("The fox", max_new_tokens=5)))) == expected


def test_requests_end_where_the_program_has_been_used_without_the_engine(artifact: Path) -> None:
    runner = program(artifact)
    engine = Engine(runner)
    expected = joined(list(engine.stream(engine.add("The fox", max_new_tokens=5))))
    stream = engine.stream(engine.add("The fox", max_new_tokens=5))
    next(stream)
    runner.generate(prompts="It's what", max_new_tokens=5)
    with pytest.raises(ExecutionError, match="another generation has started on this session"):
        list(stream)
    assert joined(list(engine.stream(engine.add("The fox", max_new_tokens=5)))) == expected


def test_other_tasks_are_refused(artifact: Path) -> None:
    from qeff_framework.runtime import CompiledEncoder
    from tests.generation.fakes import FakeEncoder

    encoder: Any = CompiledEncoder(FakeEncoder())
    with pytest.raises(InputError, match="an engine generates text, the program was compiled for encoder"):
        Engine(encoder)


def test_many_readers_some_of_whom_go_away(artifact: Path) -> None:
    alone = program(artifact, lanes=1)
    prompts = ["The fox", "It's what they", "a", "The quick brown fox jumps over the lazy dog", "don't say"]
    lengths = [17, 3, 30, 9, 24]
    expected = [
        alone.generate(prompts=prompt, max_new_tokens=length).generated_texts[0]
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    engine = AsyncEngine(program(artifact, lanes=2, slots=3, delay=0.0005))

    async def read(number: int) -> str | None:
        case = number % 5
        async with await engine.add(prompts[case], max_new_tokens=lengths[case]) as pieces:
            text = ""
            async for piece in pieces:
                text += piece.text
                if number % 3 == 2 and piece.tokens:
                    return None
            return text

    async def all_of_them() -> list[str | None]:
        texts = await asyncio.gather(*(read(number) for number in range(15)))
        given_up = asyncio.ensure_future(read(0))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await engine.drain(10)
        with pytest.raises(EngineClosedError, match="takes no more requests"):
            await engine.add("a")
        return texts

    texts = asyncio.run(all_of_them())
    assert [text for number, text in enumerate(texts) if number % 3 != 2] == [
        expected[number % 5] for number in range(15) if number % 3 != 2
    ]
    assert engine.engine.running == engine.engine.waiting == 0
    engine.close()
    engine.close()


def test_a_session_that_cannot_be_reset_closes_the_engine(artifact: Path) -> None:
    runner = program(artifact)
    session: Any = runner.session
    engine = AsyncEngine(runner)
    session.fail_at = (2, ExecutionError("device lost"))

    def no_reset() -> None:
        raise ExecutionError("no device")

    session.reset = no_reset

    async def run() -> None:
        stream = await engine.add("The fox", max_new_tokens=9)
        with pytest.raises(ExecutionError, match="device lost"):
            async for _ in stream:
                pass
        with pytest.raises(EngineClosedError, match="cannot be used any more: no device"):
            await engine.add("a")

    asyncio.run(run())
    assert not engine.ready
    engine.close()
