"""What ``qeff doctor`` says about target aic."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qeff_framework import cli
from qeff_framework.contracts import Status
from qeff_framework.registry import registry
from qnn_backend import QnnBackend
from qnn_backend.aic import probe
from qnn_backend.aic.sdk import PYTHON_VARIABLE
from qnn_backend.versions import versions


def checked() -> dict[str, tuple[Status, str, str]]:
    return {check.name.removeprefix("aic: "): (check.status, check.detail, check.remedy) for check in probe.check_aic()}


def test_standin_all_is_well(standin_qairt, standin_card) -> None:
    sdk = standin_qairt()
    standin_card()
    found = checked()
    assert {name: status for name, (status, *_) in found.items()} == dict.fromkeys(
        ("qaic distribution", "QAIRT SDK", "converter", "runtime", "devices"), Status.OK
    )
    assert found["QAIRT SDK"][1] == f"2.37.1.250807 in {sdk.root}"
    assert versions()["qairt_sdk_version"] == "2.37.1.250807"


def test_standin_the_headline_has_both_kinds_of_targets(
    standin_qairt, standin_card, no_sdk, monkeypatch, capsys
) -> None:
    """Without the compiler for NPUs the default target is out of reach, and target aic is not."""
    monkeypatch.setattr("qnn_backend.htp.probe.version_of", lambda name: "none")
    # A process of its own would not see what is patched here.
    monkeypatch.setattr("qeff_framework.registry.probe_elsewhere", lambda name: registry.descriptor(name).probe())

    def headline(expected_exit_code: int) -> str:
        assert cli.main(["doctor", "qnn"]) == expected_exit_code
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("qnn (")]
        return line.partition(": ")[2]

    nothing = "cannot compile nor execute here (simulator, rank 50)"
    assert headline(1) == nothing
    standin_qairt()
    assert headline(0) == f"{nothing}; target=aic can compile"
    standin_card()
    assert headline(0) == f"{nothing}; target=aic can compile and execute"


def test_nothing_is_there(no_sdk, monkeypatch) -> None:
    found = checked()
    assert found["QAIRT SDK"] == (
        Status.WARNING,
        "QNN_SDK_ROOT is not set: cannot compile for target aic",
        "install the QAIRT SDK with its Cloud AI back end and set QNN_SDK_ROOT to its folder",
    )
    assert found["runtime"][0] is Status.WARNING
    assert not [name for name in versions() if name.startswith("qairt")]
    names = [check.name for check in QnnBackend().probe().checks]
    assert "aic: QAIRT SDK" in names, "the backend's probe has both kinds of targets"
    monkeypatch.setitem(sys.modules, "qaic_backend", None)
    monkeypatch.setitem(sys.modules, "qaic_backend.shared", None)
    found = checked()
    assert found["qaic distribution"][0] is Status.WARNING
    assert found["qaic distribution"][2] == "pip install 'qeff-qnn-backend[aic]'"


@pytest.mark.parametrize(
    ("keywords", "detail"),
    [
        ({"without": {"backend"}}, "libQnnAic.so is not there"),
        ({"without": {"converter"}}, "qairt-converter is not there"),
        ({"description": "corrupt"}, "sdk.yaml is not YAML"),
    ],
)
def test_standin_damaged_sdk(keywords, detail, standin_qairt) -> None:
    standin_qairt(**keywords)
    status, text, remedy = checked()["QAIRT SDK"]
    assert status is Status.WARNING
    assert detail in text
    assert "set QNN_SDK_ROOT" in remedy
    assert "converter" not in checked()
    if keywords.get("description"):
        assert versions()["qairt_sdk_version"] == "unknown"


def test_standin_converter_that_does_not_start(standin_qairt, tmp_path: Path, monkeypatch) -> None:
    standin_qairt()
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'No module named numpy' >&2\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(interpreter))
    status, text, remedy = checked()["converter"]
    assert status is Status.WARNING
    assert "exit code 1: No module named numpy" in text
    assert PYTHON_VARIABLE in remedy
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "nothing"))
    assert "cannot be run" in checked()["converter"][1]
    interpreter.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv(PYTHON_VARIABLE, str(interpreter))
    monkeypatch.setattr(probe, "_TIME_LIMIT_SECONDS", 0.3)
    assert "did not end within 0.3 s" in checked()["converter"][1]
