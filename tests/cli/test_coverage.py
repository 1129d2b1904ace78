"""``qeff coverage`` runs, collects and tells; the checks and a run in processes of their own are tested in tests/coverage."""

from __future__ import annotations

import pytest

from qeff_framework.coverage import processes
from qeff_framework.coverage.processes import Report
from qeff_framework.coverage.table import read_page

KNOWN = {
    "llama": Report(model_type="llama", ok=True, seconds=8.0, facts={"class": "Llama", "logit_error": 2e-5}),
    "bart": Report(model_type="bart", ok=False, seconds=1.0, error="E: no", facts={"class": "Bart", "stage": "export"}),
    "blt": Report(
        model_type="blt",
        ok=False,
        seconds=1.0,
        error="UnsupportedModelError: patches",
        facts={"class": "Blt", "stage": "export"},
    ),
    "gemma3n": Report(model_type="gemma3n", ok=False, seconds=1.0, error="no PIL", facts={"stage": "reference"}),
}


@pytest.fixture
def known(monkeypatch):
    """Results that are there without any work; the settings of the runs."""
    settings = []

    def sweep(check, model_types, **keywords):
        settings.append((check, keywords))
        yield from (KNOWN[name] for name in model_types)

    monkeypatch.setattr(processes, "sweep", sweep)
    return settings


def test_text_progress_and_exit_code(qeff, known):
    result = qeff("coverage", "llama", "bart", "gemma3n", "--backend", "ort_sim", "--jobs", "1", "--time-limit", "9")

    assert result.code == 1
    assert result.out.splitlines()[1].split() == ["bart", "Bart", "fail", "export", "E:", "no"]
    assert result.out.splitlines()[2].split() == ["llama", "Llama", "pass", "2.0e-05"]
    assert "Without a reference:" in result.out
    assert "3 types: 1 pass, 0 refused, 1 fail, 1 without a reference, 0 not run" in result.out
    assert "2 of 3  bart  fail  1.0 s: E: no\n" in result.err
    assert result.err.endswith("qeff: error: 1 of 2 types with a reference fail: bart\n")
    [(check, keywords)] = known
    assert (check.task, check.backend) == ("causal-lm", "ort_sim")
    assert keywords == {"time_limit": 9.0, "jobs": 1, "packages": ("ort_sim_backend",)}


def test_without_a_reference_is_no_failure(qeff, known):
    result = qeff("coverage", "llama", "gemma3n", "--backend", "ort_sim", "--json", "--quiet")

    assert (result.code, result.err) == (0, "")
    assert result.json["counts"] == {"types": 2, "pass": 1, "refused": 0, "fail": 0, "no reference": 1, "not run": 0}
    assert [item["result"] for item in result.json["results"]] == ["no reference", "pass"]
    assert {"transformers", "onnxruntime", "qeff-framework"} <= set(result.json["versions"])


def test_a_refused_type_fails_the_command_only_if_it_was_named(qeff, known, tmp_path):
    named = qeff("coverage", "blt", "llama", "--backend", "ort_sim", "--lines", tmp_path / "run.jsonl")

    assert named.code == 1
    assert named.out.splitlines()[1].split() == ["blt", "Blt", "refused", "export", "UnsupportedModelError:", "patches"]
    assert "2 types: 1 pass, 1 refused, 0 fail, 0 without a reference, 0 not run" in named.out
    assert named.err.endswith("qeff: error: 1 of 2 named types are refused: blt\n")

    swept = qeff("coverage", "--from", tmp_path / "run.jsonl", "--json")

    assert (swept.code, swept.err) == (0, "")
    assert (swept.json["counts"]["refused"], swept.json["counts"]["fail"]) == (1, 0)
    assert {item["model_type"]: item["result"] for item in swept.json["results"]} == {"blt": "refused", "llama": "pass"}


def test_a_page_from_several_runs(qeff, known, tmp_path):
    lines, page = tmp_path / "run.jsonl", tmp_path / "page.md"
    assert qeff("coverage", "bart", "--backend", "ort_sim", "--lines", lines).code == 1
    assert qeff("coverage", "llama", "--backend", "ort_sim", "--lines", lines).code == 0

    result = qeff("coverage", "--from", lines, "--table", page, "--json")

    assert result.code == 1
    assert len(known) == 2
    section = read_page(page.read_text(encoding="utf-8"))["causal-lm"]
    assert section.results == {"bart": "fail", "llama": "pass"}
    assert section.counts["not run"] == section.counts["types"] - 2 > 100
    assert qeff("coverage", "llama", "--from", lines).code == 0


def test_results_of_different_versions_make_no_page(qeff, known, tmp_path):
    lines, page = tmp_path / "run.jsonl", tmp_path / "page.md"
    qeff("coverage", "llama", "bart", "--backend", "ort_sim", "--lines", lines)
    first, *rest = lines.read_text(encoding="utf-8").splitlines()
    other = first.replace('"onnx": "', '"onnx": "0.')
    lines.write_text("\n".join([first, rest[0], other, rest[1]]), encoding="utf-8")

    result = qeff("coverage", "--from", lines, "--table", page)

    assert result.code == 2
    assert "different runs" in result.err
    assert not page.exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["lama"], "'lama' (did you mean llama"),
        (["mpnet"], "use --task encoder"),
        (["--from", "nothing.jsonl"], "cannot read results from nothing.jsonl"),
        (["--from", "a", "--lines", "b"], "leave one of them out"),
        (["llama", "--jobs", "0"], "must be at least 1"),
        (["llama", "--time-limit", "-1"], "must be a positive number"),
        (["llama", "--lines", "no/such/folder"], "cannot write results"),
    ],
)
def test_wrong_usage(qeff, known, argv, told):
    result = qeff("coverage", *argv, *(() if "--from" in argv else ("--backend", "ort_sim")))

    assert result.code == 2
    assert told in result.err
    assert known == []
