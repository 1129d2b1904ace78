"""Our backends through the public door of the kit. `make conformance` runs all of it; here is what fits into the suite's time."""

from __future__ import annotations

import json

import pytest

from qeff_framework.cli import main
from qeff_framework.testing import GROUPS, Outcome
from tests.plugins.qnn_backend.htp.simulator import needs_simulator

#: Other tests of the suite compare whole models with PyTorch.
WITHOUT_MODELS = [group for group in GROUPS if group != "generation"]


def outcomes(capsys: pytest.CaptureFixture[str], name: str, groups: list[str]) -> dict[str, str]:
    """What became of the checks; the command must succeed."""
    code = main(["test-backend", name, *(f"--group={group}" for group in groups), "--json"])
    results = json.loads(capsys.readouterr().out)["results"]
    assert code == 0, {
        each["id"]: each["message"] for each in results if each["outcome"] not in ("passed", "not claimed")
    }
    return {each["id"]: each["outcome"] for each in results}


@pytest.mark.slow
def test_ort_sim_conforms(capsys) -> None:
    found = outcomes(capsys, "ort_sim", WITHOUT_MODELS)
    assert {*found.values()} == {Outcome.PASSED, Outcome.NOT_CLAIMED}
    assert sum(each == Outcome.PASSED for each in found.values()) > 150


def test_qaic_conforms_without_its_sdk_as_far_as_can_be_told(capsys) -> None:
    found = outcomes(capsys, "qaic", ["descriptor", "metadata", "transforms", "compile", "capabilities", "errors"])
    assert found["capabilities/dry_run"] == found["errors/unavailable"] == Outcome.PASSED
    assert found["capabilities/compressed[mxfp6_matmul]"] == Outcome.UNAVAILABLE


def test_a_device_that_is_not_here_can_be_required(capsys) -> None:
    code = main(["test-backend", "qaic", "--check=capabilities/multi_device", "--require-device"])

    assert code == 1
    assert "a device is required" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.htp
@needs_simulator
def test_qnn_conforms_in_the_simulator(capsys) -> None:
    found = outcomes(capsys, "qnn", ["descriptor", "metadata", "imports", "transforms", "execute", "errors"])
    assert found["execute/states_are_retained"] == found["errors/damaged_file"] == Outcome.PASSED
