"""``qeff test-backend``: the conformance kit from the command line."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET


def test_one_group_with_reports(qeff, tmp_path) -> None:
    files = {name: tmp_path / f"report.{name}" for name in ("json", "junit", "html")}

    result = qeff(
        "test-backend", "ort_sim", "--group", "descriptor", *(f"--{name}={file}" for name, file in files.items())
    )

    assert result.code == 0
    assert result.out.splitlines()[0].startswith("descriptor ")
    document = json.loads(files["json"].read_text())
    assert document["conforms"]
    assert document["badge"] in result.out
    assert document["badge"] in files["html"].read_text()
    assert len(list(ET.parse(files["junit"]).iter("testcase"))) == len(document["results"])


def test_json_alone_is_on_stdout(qeff) -> None:
    result = qeff("test-backend", "ort_sim", "--check", "descriptor/name", "--json")

    assert result.code == 0
    assert [each["id"] for each in result.json["results"]] == ["descriptor/name"]


def test_the_list_names_every_check(qeff) -> None:
    result = qeff("test-backend", "ort_sim", "--list", "--json")

    assert result.code == 0
    ids = [each["id"] for each in result.json["checks"]]
    assert {"descriptor/name", "execute/refused_step[length]"} <= set(ids)


def test_a_failure_is_1(qeff, tmp_path) -> None:
    settings = tmp_path / "conformance.toml"
    settings.write_text('[expected_failures]\n"descriptor/name" = "it has none"\n')

    result = qeff("test-backend", "ort_sim", "--check", "descriptor/name", "--settings", str(settings))

    assert result.code == 1
    assert "unexpected pass:" in result.out
    assert result.err.splitlines()[-1] == "qeff: error: 1 of 1 checks fail: descriptor/name"


def test_wrong_usage(qeff, tmp_path) -> None:
    for arguments, message in [
        (["--group", "speed"], "no group of checks is named 'speed'; the groups are descriptor"),
        (["--check", "descriptor/nam"], "no check is named 'descriptor/nam'"),
        (["-O", "precison=w4"], "did you mean 'precision'?"),
        (["--html", str(tmp_path / "no" / "page.html")], "cannot write the report"),
    ]:
        result = qeff("test-backend", "ort_sim", *arguments)
        assert result.code == 2
        assert message in result.err
