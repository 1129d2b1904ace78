"""Every row of a file gets exactly one line, whenever the work was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qeff_framework.artifacts import Manifest
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.serving import Engine
from qeff_framework.serving import batch as batches
from qeff_framework.serving.batch import BatchProgress, complete, run_batch
from tests.serving.programs import program

pytestmark = pytest.mark.usefixtures("session_store")

ROWS: list[Any] = [
    {"prompt": "The fox", "max_new_tokens": 9},
    {"prompt": "It's what"},
    {"messages": [{"role": "user", "content": "The fox"}], "max_new_tokens": 4},
    {"prompt": [5, 6, 7], "do_sample": True, "top_k": 5, "seed": 1},
    {"prompt": ""},
    {"text": "no prompt"},
    {"prompt": "a", "temprature": 1},
    "no object",
    {"prompt": "a", "n": 2},
    {"prompt": "a"},
    {"prompt": "a", "stop_strings": 5},
    {"prompt": {"role": None}},
    {"prompt": "a", "json_schema": {"enum": ["fox", 7]}, "max_new_tokens": 20},
]
FAILING = {5, 6, 7, 8, 10, 11}


def write(path: Path, rows: list[Any]) -> Path:
    # As some editors write it: a byte order mark in front.
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8-sig")
    return path


def lines(path: Path) -> dict[int, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["row"] for line in found}) == len(found)
    return {line["row"]: line for line in found}


@pytest.fixture(scope="module")
def engine(artifact: Path) -> Engine:
    return Engine(program(artifact, lanes=2, slots=3))


def test_each_row_gets_what_generate_gives_and_a_bad_row_its_error(
    engine: Engine, artifact: Path, tmp_path: Path
) -> None:
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    seen: list[BatchProgress] = []
    state = run_batch(engine, source, target, settings={"max_new_tokens": 6}, on_progress=seen.append)
    answers = lines(target)
    assert sorted(answers) == list(range(len(ROWS)))
    assert (state.rows, state.done, state.failed) == (13, 13, len(FAILING))
    assert [each.done for each in seen] == list(range(1, 14))
    assert {number for number, line in answers.items() if "error" in line} == FAILING
    assert "temprature" in answers[6]["error"]
    alone = program(artifact)
    for number in set(range(len(ROWS))) - FAILING:
        row = {"max_new_tokens": 6, **ROWS[number]}
        prompt = row.pop("prompt", None)
        expected = alone.generate(prompts=[row.pop("messages")] if prompt is None else [prompt], **row)
        assert answers[number]["text"] == expected.generated_texts[0]
        assert answers[number]["token_ids"] == expected.generated_ids[0]
    before = target.read_bytes()
    assert run_batch(engine, source, target, settings={"max_new_tokens": 6}).failed == len(FAILING)
    assert target.read_bytes() == before
    with pytest.raises(
        InputError, match="an answer to row 0 of another input, with other settings, or of another program"
    ):
        run_batch(engine, source, target, settings={"max_new_tokens": 7})
    shorter = write(tmp_path / "shorter.jsonl", ROWS[:-2])
    with pytest.raises(InputError, match="an answer to row 11 of another input"):
        run_batch(engine, shorter, target, settings={"max_new_tokens": 6})
    with pytest.raises(InputError, match="is no output of `qeff batch`"):
        run_batch(engine, target, source)


def test_prompts_and_messages_are_what_their_names_say(engine: Engine) -> None:
    """A text under "messages" would be answered without the chat template."""
    rows = ['{"messages": "my name is"}', '{"messages": {"role": "user"}}', '{"prompt": null}', '{"prompt": {"a": 1}}']
    told = [answer["error"] for answer in batches.answers(engine, enumerate(rows), {})]
    assert [text.partition(",")[0] for text in told[:2]] == ['"messages" must be a list of messages'] * 2
    assert told[2:] == [f'"prompt" must be a text or a list of token ids, got {got}' for got in ("null", '{"a": 1}')]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.floats(0, 1), interrupted=st.integers(0, 9))
def test_it_goes_on_where_it_was_killed(engine: Engine, tmp_path: Path, kept: float, interrupted: int) -> None:
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    target.unlink(missing_ok=True)

    class KilledError(BaseException):
        pass

    def stop(state: BatchProgress) -> None:
        if state.done > interrupted:
            raise KilledError

    with pytest.raises(KilledError):
        run_batch(engine, source, target, settings={"max_new_tokens": 6}, on_progress=stop)
    content = target.read_bytes()
    target.write_bytes(content[: round(kept * len(content))])
    for job in list(engine._by_request.values()):
        engine.cancel(job.id)
    run_batch(engine, source, target, settings={"max_new_tokens": 6})
    answers = lines(target)
    assert sorted(answers) == list(range(len(ROWS)))
    whole = tmp_path / "whole.jsonl"
    if not whole.exists():
        run_batch(engine, source, whole, settings={"max_new_tokens": 6})
    assert answers == lines(whole)


def test_answers_of_another_program_are_not_mixed_with_those_of_this_one(
    engine: Engine, artifact: Path, tmp_path: Path
) -> None:
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    other = Manifest.load(artifact)
    (tmp_path / "other").mkdir()
    replace(other, key="0" * len(other.key)).save(tmp_path / "other")
    with pytest.raises(ExecutionError, match="got no answer"):
        complete(
            source,
            target,
            lambda rows: ({"row": n, "text": ""} for n, _ in list(rows)[:2]),
            settings={},
            program=tmp_path / "other",
        )
    with pytest.raises(InputError, match="or of another program"):
        run_batch(engine, source, target)


def test_rows_that_get_no_answer_are_not_passed_over(artifact: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(ExecutionError, match="11 of 13 rows got no answer"):
        complete(
            source,
            target,
            lambda rows: ({"row": n, "text": ""} for n, _ in list(rows)[:2]),
            settings={},
            program=artifact,
        )
    assert sorted(lines(target)) == [0, 1]


@pytest.mark.parametrize("content", [b"notes without an end of line", b"{", b'{"rows": 3'])
def test_a_file_of_somebody_else_stays_as_it_is(content: bytes, engine: Engine, tmp_path: Path) -> None:
    """Its one line is no broken line of an output, which the next run would take away."""
    source, target = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    target.write_bytes(content)
    if content != b"{":
        with pytest.raises(InputError, match="is no output of `qeff batch`"):
            run_batch(engine, source, target)
        assert target.read_bytes() == content
    source.write_bytes(content)
    with pytest.raises(InputError, match="is the input itself"):
        run_batch(engine, source, source)
    assert source.read_bytes() == content


def test_a_broken_line_is_kept_where_the_output_is_refused(engine: Engine, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    content = b'{"row": 0, "key": "of another input", "text": ""}\n{"row": 1, "ke'
    target.write_bytes(content)
    with pytest.raises(InputError, match="an answer to row 0 of another input"):
        run_batch(engine, source, target)
    assert target.read_bytes() == content


def test_an_output_has_one_writer(engine: Engine, artifact: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", ROWS[:2]), tmp_path / "out.jsonl"
    refused: list[str] = []

    def second(_: BatchProgress) -> None:
        try:
            complete(
                source, target, lambda rows: ({"row": n, "text": ""} for n, _ in rows), settings={}, program=artifact
            )
        except InputError as error:
            refused.append(str(error))

    run_batch(engine, source, target, on_progress=second)
    assert sorted(lines(target)) == [0, 1]
    assert len(refused) == 2
    assert "another process writes" in refused[0]
