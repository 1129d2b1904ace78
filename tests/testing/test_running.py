"""Outcomes, expected failures, and the report in its forms."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from qeff_framework.dialect.names import Op
from qeff_framework.errors import OptionError
from qeff_framework.plugin_api import BackendUnavailableError, Capabilities, Probe
from qeff_framework.testing import (
    BackendConformance,
    CheckResult,
    Outcome,
    Report,
    Settings,
    all_checks,
    chosen_cases,
    layers,
    run_conformance,
)
from qeff_framework.testing.groups import dialect
from qeff_framework.testing.reports import to_document, to_html, to_junit, to_text
from tests.testing.mutants.execute import StateNotReset
from tests.testing.toy_backend import ToyBackend, ToyOptions
from tests.testing.toy_hooks import ToyHooks


class WithoutSummary(ToyBackend):
    """Has no summary, forgets to reset, and claims little."""

    summary = ""
    capabilities = Capabilities(tasks=frozenset({"causal-lm"}))
    implementation = "tests.testing.test_running:ForgetfulHooks"


class ForgetfulHooks(ToyHooks):
    session = StateNotReset


def outcomes(report: Report) -> dict[str, Outcome]:
    return {each.id: each.outcome for each in report.results}


def test_an_expected_failure_is_told_with_its_reason(workspace: Path) -> None:
    settings = Settings(expected_failures={"descriptor/summary": "nobody reads it"})
    report = run_conformance(WithoutSummary, settings=settings, groups=["descriptor"], workspace=workspace)
    [found] = [each for each in report.results if each.id == "descriptor/summary"]
    assert found.outcome is Outcome.EXPECTED_FAILURE
    assert found.message.startswith("nobody reads it (summary is empty")
    assert report.conforms


def test_an_expected_failure_that_passes_is_a_failure(workspace: Path) -> None:
    settings = Settings(expected_failures={"descriptor/summary": "nobody reads it"})
    report = run_conformance(ToyBackend, settings=settings, only=["descriptor/summary"], workspace=workspace)
    assert [each.outcome for each in report.results] == [Outcome.UNEXPECTED_PASS]
    assert not report.conforms
    assert "remove the entry" in report.results[0].message


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ("descriptor/sumary", "names no check: remove it, or correct its name"),
        ("execute/refused_step", r"names no check: name its cases, such as 'execute/refused_step\[length\]'"),
    ],
)
def test_an_expected_failure_names_a_check(expected: str, message: str, workspace: Path) -> None:
    with pytest.raises(OptionError, match=message):
        run_conformance(ToyBackend, settings=Settings(expected_failures={expected: "so"}), workspace=workspace)


def test_a_reason_is_asked_for() -> None:
    with pytest.raises(OptionError, match="'descriptor/summary' has no reason"):
        Settings(expected_failures={"descriptor/summary": " "})


def test_settings_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "conformance.toml"
    file.write_text('precision = "float16"\n[options]\nlevel = "basic"\n[expected_failures]\n"a/b" = "because"\n')
    assert Settings.read(file) == Settings(
        precision="float16", options={"level": "basic"}, expected_failures={"a/b": "because"}
    )
    for text, message in [
        ('precision = "float12"', "precision = 'float12' must be one of float32"),
        ("options = 3", "holds 'options'"),
        ("expected_failure = {}", "holds 'expected_failure'"),
        ("precision", "cannot be read"),
    ]:
        file.write_text(text)
        with pytest.raises(OptionError, match=message):
            Settings.read(file)


# --- what is not here -------------------------------------------------------------------------------------------------


class DeviceHooks(ToyHooks):
    def build(self, request):
        raise BackendUnavailableError("the toy SDK is not installed")


class WithoutSdk(ToyBackend):
    implementation = "tests.testing.test_running:DeviceHooks"

    def probe(self) -> Probe:
        return Probe(can_compile=False, can_execute=False, hardware=True, rank=0)


class BoastsOfItsSdk(WithoutSdk):
    def probe(self) -> Probe:
        return Probe(can_compile=True, can_execute=True, hardware=True, rank=0)


CHECK = "execute/states_are_retained"


def test_what_is_not_here_is_unavailable_and_a_failure_where_a_device_is_required(workspace: Path) -> None:
    report = run_conformance(WithoutSdk, settings=Settings(), only=[CHECK], workspace=workspace)
    [found] = report.results
    assert (found.outcome, found.message) == (
        Outcome.UNAVAILABLE,
        "backend 'toy' (passed as an object): the toy SDK is not installed",
    )
    assert not report.conforms
    assert not report.bad
    required = Settings(require_device=True)
    [found] = run_conformance(WithoutSdk, settings=required, only=[CHECK], workspace=workspace).results
    assert found.outcome is Outcome.FAILED


def test_a_probe_that_promised_more_is_a_failure(workspace: Path) -> None:
    [found] = run_conformance(BoastsOfItsSdk, only=[CHECK], workspace=workspace).results
    assert found.outcome is Outcome.FAILED
    assert "probe() says that it can compile here" in found.message


class EncodersOnly(ToyBackend):
    capabilities = Capabilities(tasks=frozenset({"encoder"}))


def test_what_is_not_claimed_is_not_run(workspace: Path) -> None:
    report = run_conformance(EncodersOnly, only=[CHECK, "execute/continuous_batching"], workspace=workspace)
    assert {*outcomes(report).values()} == {Outcome.NOT_CLAIMED}


@dataclass(frozen=True, kw_only=True)
class OptionsOfOneTarget(ToyOptions):
    def __post_init__(self) -> None:
        if self.num_layers_per_program is not None:
            raise OptionError("num_layers_per_program is for another target")


class OneTarget(ToyBackend):
    options = OptionsOfOneTarget


def test_an_option_that_is_refused_with_the_settings_is_not_claimed(workspace: Path) -> None:
    report = run_conformance(OneTarget, only=["generation/windows_of_layers"], workspace=workspace)
    [found] = report.results
    assert found.outcome is Outcome.NOT_CLAIMED
    assert found.message.endswith("num_layers_per_program is for another target")


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    def result(name: str, outcome: Outcome, message: str = "") -> CheckResult:
        return CheckResult(
            id=f"descriptor/{name}", group="descriptor", summary="A promise <&>.", outcome=outcome, message=message
        )

    return Report(
        backend="toy",
        origin="toy-backend 1.2.3",
        versions={"toy": "1"},
        precision="float32",
        seconds=1.5,
        results=[
            result("a", Outcome.PASSED),
            result("b", Outcome.FAILED, "got <3> & \x1b[31m not 4"),
            result("c", Outcome.NOT_CLAIMED, "it does not claim x"),
            result("d", Outcome.EXPECTED_FAILURE, "known"),
        ],
    )


def test_text(report: Report) -> None:
    text = to_text(report)
    assert text.splitlines()[0] == "descriptor   1 passed, 1 failed, 1 expected failure, 1 not claimed"
    assert "  descriptor/b: A promise <&>." in text
    assert "\x1b" not in text
    assert text.splitlines()[-1] == ("qeff conformance of toy: 1 passed, 1 failed, 1 expected failure, 1 not claimed")


def test_json(report: Report) -> None:
    document = json.loads(json.dumps(to_document(report)))
    assert (document["format"], document["backend"], document["conforms"]) == (1, "toy", False)
    assert document["counts"] == {
        "passed": 1,
        "failed": 1,
        "expected failure": 1,
        "unexpected pass": 0,
        "not claimed": 1,
        "unavailable": 0,
    }
    assert document["results"][1]["outcome"] == "failed"


def test_junit(report: Report) -> None:
    [suite] = ET.fromstring(to_junit(report))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "2")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert "got <3> &" in str(cases["descriptor/b"].find("failure").get("message"))
    assert cases["descriptor/c"].find("skipped").get("message") == "not claimed: it does not claim x"
    assert len(cases["descriptor/a"]) == 0


def test_html(report: Report) -> None:
    page = to_html(report)
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            opened.append(tag)

    Reader().feed(page)
    assert opened.count("tr") == 4 + 4
    assert "script" not in opened
    assert "http" not in page
    assert "got &lt;3&gt; &amp;" in page
    assert f'<p class="badge" style="background: #cf222e">{report.badge}</p>' in page


# --- the class --------------------------------------------------------------------------------------------------------


class TestToy(BackendConformance):
    """A group of the kit as an author's own tests have it."""

    backend = ToyBackend
    groups = ("descriptor", "execute")

    def test_descriptor_summary(self) -> None:
        """One that the author has replaced."""
        assert ToyBackend.summary.startswith("runs")


def test_the_class_has_a_test_for_each_check() -> None:
    names = [name for name in dir(TestToy) if name.startswith("test_")]
    cases = chosen_cases(ToyBackend(), groups=TestToy.groups)
    assert len(names) == len(cases) > 40
    assert "test_execute_refused_step_padding_in_front" in names
    assert TestToy.test_execute_reset.__doc__ == "`reset` makes the states what they were after loading."


def test_a_test_of_the_class_fails_skips_and_xfails(workspace: Path) -> None:
    class Broken(BackendConformance):
        backend = WithoutSummary
        groups = ("descriptor", "execute")
        settings = Settings(expected_failures={"execute/reset": "not yet"})

    tests = Broken()
    try:
        with pytest.raises(pytest.fail.Exception, match="summary is empty"):
            tests.test_descriptor_summary()
        with pytest.raises(pytest.skip.Exception, match="not claimed: it does not claim continuous_batching"):
            tests.test_execute_continuous_batching_large()
        with pytest.raises(pytest.xfail.Exception, match="not yet"):
            tests.test_execute_reset()
        tests.test_descriptor_name()
    finally:
        Broken.teardown_class()


def test_every_op_of_the_dialect_is_checked() -> None:
    source = Path(dialect.__file__).read_text(encoding="utf-8")
    shared = Path(layers.__file__).read_text(encoding="utf-8")
    named = {*re.findall(r"qeff\.(\w+)", source + shared)} | {"MoE", "MoEBias", "QuantizedMoE", "QuantizedMoEBias"}
    assert {str(op) for op in Op} == named


def test_ids_are_unique_and_promises_are_sentences() -> None:
    checks = all_checks()
    assert len({each.id for each in checks}) == len(checks)
    assert all((each.summary.endswith(".") and each.summary[0].isupper()) or each.summary[0] == "`" for each in checks)
