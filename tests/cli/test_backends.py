"""``qeff backends`` reads metadata only, and fast."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from qeff_framework.plugin_api import BACKEND_GROUP
from tests.cli.conftest import command, run_process
from tests.fake_distributions import write_distribution

#: Of wall-clock time for a listing with three backends.
BUDGET_SECONDS = 0.5


@pytest.fixture
def three_backends(environment, tmp_path):
    """Three installed packages; each would leave a file behind when it is imported, and the third raises then."""
    site = tmp_path / "site"
    for name in ("first", "second", "broken"):
        source = f"from pathlib import Path\nPath({str(tmp_path / f'{name}.imported')!r}).touch()\n"
        if name == "broken":
            source += "raise ImportError('libbroken.so is missing')\n"
        write_distribution(
            site,
            f"qeff-{name}-backend",
            "2.1",
            entry_points={BACKEND_GROUP: {name: f"{name}_module:Thing"}},
            modules={f"{name}_module": source},
        )
    return {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}:{site}"}


def test_lists_three_and_imports_none(three_backends, tmp_path):
    result = run_process(three_backends, "backends", "--json")

    assert result.code == 0
    listed = {item["name"]: item for item in result.json["backends"]}
    assert {"first", "second", "broken"} <= set(listed)
    assert listed["broken"] == {
        "name": "broken",
        "distribution": "qeff-broken-backend",
        "version": "2.1",
        "summary": "made by a test",
        "target": "broken_module:Thing",
        "api_major": "1",
        "status": "available",
        "reason": "",
    }
    assert list(tmp_path.glob("*.imported")) == []


def test_is_fast(three_backends):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command("backends"), env=three_backends, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)

    # With more processes than processors each gets its share only, which says nothing about this one.
    assert min(seconds) < BUDGET_SECONDS * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_table_names_what_blocks(three_backends):
    result = run_process({**three_backends, "QEFF_DISABLE_BACKENDS": "second"}, "backends")

    lines = {line.split()[0]: line for line in result.out.splitlines()}
    assert "available" in lines["first"]
    assert "blocked by QEFF_DISABLE_BACKENDS='second'" in lines["second"]


def test_nothing_installed_names_the_next_step(qeff, monkeypatch):
    monkeypatch.setattr("qeff_framework.registry.entry_points", lambda group=None: [])

    result = qeff("backends")

    assert result.code == 0
    assert "pip install qeff-ort-sim-backend" in result.out
    assert qeff("backends", "--json").json == {"backends": []}


def test_one_name(three_backends):
    result = run_process(three_backends, "backends", "FIRST", "--json")

    assert [item["name"] for item in result.json["backends"]] == ["first"]


def test_one_name_says_what_its_descriptor_says(model_qeff, three_backends):
    told = model_qeff("backends", "toy")

    assert told.code == 0
    facts = dict(line.split(maxsplit=1) for line in told.out.splitlines() if not line.startswith("plugin API"))
    assert facts["summary"] == "counts"
    assert (facts["tasks"], facts["capabilities"]) == ("causal-lm", "dry_run")
    broken = run_process(three_backends, "backends", "broken", "--json").json["backends"][0]
    assert (broken["status"], broken["summary"], broken["tasks"]) == ("broken", "made by a test", [])
    assert "ImportError: libbroken.so is missing" in broken["reason"]


def test_options_of_one_backend(model_qeff):
    text = model_qeff("backends", "toy", "--options")
    document = model_qeff("backends", "toy", "--options", "--json").json

    assert text.code == 0
    assert "what to do (plain | wait | refuse | crash | noisy)" in text.out
    names = {stage: [row["name"] for row in rows] for stage, rows in document["options"].items()}
    assert names["compile"][-3:] == ["level", "mode", "flags"]
    assert names["runtime"] == ["shift"]
