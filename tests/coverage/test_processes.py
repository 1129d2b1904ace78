"""Each type has a process of its own, forked from a parent that has loaded all that the checks will need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.coverage.processes import Report, message, where
from qeff_framework.errors import ExecutionError
from tests.fake_distributions import write_distribution

SWEEP = """
import contextlib, io, json, os, sys, time
from qeff_framework.coverage.processes import CheckError, sweep

def dies():
    os.write(2, b"something first\\nterminate called\\n")
    os._exit(3)

def fails():
    raise CheckError("differs", {"stage": "tokens"})

def raises():
    raise ValueError("no\\nmore")

def works():
    print("noise")
    return {"loaded": len([name for name in sys.modules if name.startswith("qeff_framework.")])}

ways = {"hangs": lambda: time.sleep(60), "dies": dies, "fails": fails, "raises": raises, "works": works}
for report in sweep(lambda name: ways[name](), list(ways), time_limit=2.0):
    print(report.to_json())
ours = {name.removeprefix("qeff_framework.") for name in sys.modules if name.startswith("qeff_framework.")}
wanted = {"cli.coverage", "export.trace", "seam.cache", "generation.loop", "auto.causal_lm", "coverage.parity"}
backends = [name for name in ("onnxruntime", "ort_sim_backend") if name in sys.modules]
print(json.dumps({"ours": len(ours), "missing": sorted(wanted - ours), "backends": backends}))

# What a user runs, in the same process: most of its time goes into what a sweep loads beforehand.
from qeff_framework.cli import main

document = io.StringIO()
with contextlib.redirect_stdout(document):
    code = main(["coverage", "gpt_bigcode", "--backend", "ort_sim", "--json"])
print(json.dumps({"code": code, "document": json.loads(document.getvalue())}))
"""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What the process above told."""

    reports: dict[str, Report]
    #: What the parent had loaded.
    loaded: dict[str, Any]
    #: Of the command.
    code: int
    document: dict[str, Any]
    progress: str
    #: What lies where it ran, and in the store.
    left: list[Path]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    place = tmp_path_factory.mktemp("swept")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SWEEP],
        env={**os.environ, "QEFF_HOME": str(place / "home")},
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, loaded, command = ended.stdout.splitlines()
    reports = [Report.from_json(line) for line in lines]
    return Swept(
        reports={report.model_type: report for report in reports},
        loaded=json.loads(loaded),
        progress=ended.stderr,
        left=list(place.rglob("*")),
        **json.loads(command),
    )


def test_a_type_that_hangs_or_dies_costs_only_its_own_line(swept: Swept) -> None:
    reports = swept.reports
    assert {name: report.error for name, report in reports.items()} == {
        "hangs": "no result within 2 s",
        "dies": "the process ended with exit code 3: terminate called",
        "fails": "differs",
        "raises": "ValueError: no\nmore",
        "works": None,
    }
    assert {name: report.facts.get("stage") for name, report in reports.items()} == {
        "hangs": "time limit",
        "dies": "process",
        "fails": "tokens",
        "raises": None,
        "works": None,
    }


def test_the_parent_loads_the_framework_and_no_backend(swept: Swept) -> None:
    assert swept.loaded["missing"] == swept.loaded["backends"] == []
    # What a check finds loaded is what the parent had: an edit of the sources reaches none of the processes.
    assert swept.reports["works"].facts["loaded"] == swept.loaded["ours"]


def test_the_command_checks_a_real_type_in_a_process_of_its_own(swept: Swept) -> None:
    assert swept.code == 0
    [found] = swept.document["results"]
    assert (found["model_type"], found["result"]) == ("gpt_bigcode", "pass")
    assert found["logit_error"] < 1e-3
    assert "1 of 1  gpt_bigcode  pass" in swept.progress
    assert swept.left == []


@pytest.mark.parametrize(
    "report",
    [
        Report(model_type="llama", ok=True, seconds=1.5, facts={"logit_error": 1e-5}),
        Report(model_type="bart", ok=False, seconds=2.0, error="no", facts={"stage": "export"}),
    ],
    ids=lambda report: report.outcome,
)
def test_lines_are_read_as_they_were_written(report: Report) -> None:
    assert "\n" not in report.to_json()
    assert Report.from_json(report.to_json()) == report


def test_only_a_failing_reference_is_no_failure() -> None:
    stages = {"reference": "no reference", "export": "fail", "tokens": "fail", None: "fail"}
    for stage, outcome in stages.items():
        line = json.dumps(
            {"model_type": "x", "ok": False, "seconds": 1.0, "error": "e"} | ({"stage": stage} if stage else {})
        )
        assert Report.from_json(line).outcome == outcome


@pytest.mark.parametrize(
    ("stage", "error", "outcome"),
    [
        ("export", "UnsupportedModelError: X cannot be exported as causal-lm: its patches", "refused"),
        ("export", "ExportError: X cannot be exported as causal-lm: the trace failed", "fail"),
        ("compile", "UnsupportedModelError: no loops", "fail"),
        ("reference", "UnsupportedModelError: its tokens do not depend on the input", "no reference"),
        ("tokens", "prompt 0 differs from step 3 on", "fail"),
        (None, "OSError: no space", "fail"),
    ],
)
def test_only_what_the_export_refuses_on_purpose_is_refused(stage: str | None, error: str, outcome: str) -> None:
    report = Report(model_type="x", ok=False, seconds=1.0, error=error, facts={"stage": stage} if stage else {})
    assert report.outcome == outcome
    assert Report.from_json(report.to_json()).outcome == outcome


def test_an_error_in_a_backend_is_laid_where_it_was_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def run():\n    return {}['missing']\n"
    group = {"qeff_framework.backends.v1": {"faulty": "qeff_faulty_module:Nothing"}}
    write_distribution(tmp_path, "qeff-faulty", entry_points=group, modules={"qeff_faulty_module": source})
    monkeypatch.syspath_prepend(str(tmp_path))

    from qeff_faulty_module import run  # type: ignore[import-not-found]

    def step() -> None:
        try:
            run()
        except KeyError as error:
            raise ExecutionError("the step failed:\nrow 3") from error

    with pytest.raises(ExecutionError) as caught:
        step()
    assert where(caught.value) == "qeff_faulty_module:2"
    assert message(caught.value) == "ExecutionError: the step failed:\nrow 3"
    assert where(ValueError("raised nowhere")) == "qeff_framework"
