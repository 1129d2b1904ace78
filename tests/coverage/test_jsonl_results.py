"""Results of several runs are one set of results, unless they cannot be compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import cast

import pytest

from qeff_framework.coverage.jsonl_results import Run, read_lines
from qeff_framework.coverage.processes import Report
from qeff_framework.errors import OptionError
from qeff_framework.plugin_api import Backend

DECODERS = Run(task="causal-lm", backend="toy", versions={"transformers": "5.24.0"})
ENCODERS = Run(task="encoder", backend="toy", versions={"transformers": "5.24.0"})
FAILED = Report(model_type="bert", ok=False, seconds=1.0, error="no", facts={"stage": "export"})
PASSED = Report(model_type="bert", ok=True, seconds=1.0)


def written(file: Path, *lines: Run | Report) -> Path:
    file.write_text("".join(f"{line.to_json()}\n" for line in lines), encoding="utf-8")
    return file


def test_later_lines_replace_earlier_ones(tmp_path: Path) -> None:
    first = written(tmp_path / "first", DECODERS, FAILED)
    second = written(tmp_path / "second", DECODERS, PASSED)
    assert read_lines([first, second], "causal-lm") == ([DECODERS], {"bert": PASSED})
    assert read_lines([second, first], "causal-lm") == ([DECODERS], {"bert": FAILED})


def test_types_that_run_again_after_an_edit_belong_to_the_same_run() -> None:
    # A digest of the backend's files would make two runs of them, which one table refuses.
    class Edited:
        name = "toy"

        def __init__(self, digest: str) -> None:
            self.digest = digest

        def fingerprint(self) -> dict[str, str]:
            return {"onnxruntime": "1", "files": self.digest}

    runs = [Run.here("causal-lm", cast("Backend", Edited(digest))) for digest in "ab"]
    assert runs[0] == runs[1]
    assert runs[0].versions["onnxruntime"] == "1"


def test_lines_of_another_task_are_left_out(tmp_path: Path) -> None:
    file = written(tmp_path / "both", DECODERS, FAILED, ENCODERS, PASSED)
    assert read_lines([file], "encoder") == ([ENCODERS], {"bert": PASSED})
    assert read_lines([file], "causal-lm") == ([DECODERS], {"bert": FAILED})


def test_a_byte_order_mark_and_odd_characters_are_no_lines(tmp_path: Path) -> None:
    odd = dataclasses.replace(FAILED, error="first\x85second")
    text = f"{DECODERS.to_json()}\r\n{json.dumps(json.loads(odd.to_json()), ensure_ascii=False)}\r\n"
    file = tmp_path / "edited"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_lines([file], "causal-lm") == ([DECODERS], {"bert": odd})


def test_lines_without_a_run_are_taken_as_they_are(tmp_path: Path) -> None:
    assert read_lines([written(tmp_path / "bare", PASSED)], "encoder") == ([], {"bert": PASSED})


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "encoder"}', '{"model_type": "bert"}'])
def test_anything_else_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    file = written(tmp_path / "odd", DECODERS, PASSED)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)
    with pytest.raises(OptionError, match=r"odd, line 3 is not a line of"):
        read_lines([file], "causal-lm")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot read results"):
        read_lines([tmp_path / "nothing"], "causal-lm")
