"""``qeff batch`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_rows_are_answered_as_generate_does(model_qeff: Any, artifact: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "my name is"}\n{"prompt": "one two"}\n{"prompt": 5}\n')
    result = model_qeff("batch", source, target, "--artifact", artifact, "--max-new-tokens", 5, "--json")
    assert result.code == 1
    assert "1 of 3 rows failed" in result.err
    assert (result.json["rows"], result.json["failed"]) == (3, 1)
    printed = model_qeff(
        "generate", artifact, "--prompt", "my name is", "one two", "--max-new-tokens", 5, "--json"
    ).json
    answers = {line["row"]: line for line in map(json.loads, target.read_text().splitlines())}
    assert [answers[row]["text"] for row in (0, 1)] == [each["text"] for each in printed["results"]]
    assert "error" in answers[2]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("no.jsonl", "out", "there is no such file"),
        ("in.jsonl", "no/out", "in a directory that exists"),
        ("in.jsonl", "in.jsonl", "INPUT itself"),
    ],
)
def test_wrong_usage(model_qeff: Any, tmp_path: Path, source: str, target: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text("{}")
    result = model_qeff("batch", tmp_path / source, tmp_path / target, "--artifact", tmp_path)
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", 2], "--replicas is for --engine ray"),
        (["--engine", "ray", "--batch-size", 0], "--batch-size=0 must be at least 1"),
        (["--max-new-tokens", 0], "max_new_tokens=0 must be a whole number of at least 1"),
        (["--regex", "("], "regex cannot be followed"),
    ],
)
def test_options_that_no_row_could_follow(
    model_qeff: Any, artifact: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    (tmp_path / "in.jsonl").write_text("{}")
    result = model_qeff("batch", tmp_path / "in.jsonl", tmp_path / "out", "--artifact", artifact, *options)
    assert result.code in (1, 2)
    assert not (tmp_path / "out").exists()
    assert message in result.err


def test_what_is_no_artifact_is_refused(model_qeff: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("{}")
    result = model_qeff("batch", tmp_path / "in.jsonl", tmp_path / "out", "--artifact", tmp_path)
    assert result.code == 2
    assert "it is no compiled artifact" in result.err
    assert not (tmp_path / "out").exists()
