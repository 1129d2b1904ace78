"""The kit bites: a backend that breaks a promise fails in the checks of that promise, and in no other of its group."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from qeff_framework.plugin_api import BACKEND_GROUP
from qeff_framework.testing import GROUPS, run_conformance
from tests.testing.mutants import METADATA, MUTANTS, Mutant, load_all
from tests.testing.toy_backend import ToyBackend

load_all()


@contextmanager
def installed(root: Path, metadata: str, name: str, target: str) -> Iterator[None]:
    """A package with this metadata, and an entry point `name` that leads to `target`."""
    info = root / "toy_backend-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[{BACKEND_GROUP}]\n{name} = {target}\n")
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(root))


def run_mutant(mutant: Mutant, workspace: Path, folder: Path, *, only: Sequence[str] = ()) -> dict[str, str]:
    """What fails of the mutant's group, or of the checks `only`, with its message."""

    def bad() -> dict[str, str]:
        report = run_conformance(
            mutant.backend, settings=mutant.settings, groups=[mutant.group], only=only, workspace=workspace
        )
        return {each.id: each.message for each in report.bad}

    if mutant.metadata is None:
        return bad()
    # Normalised, so that one that is spelt in another way is found all the same.
    entry = mutant.backend.name.lower().replace("-", "_")
    with installed(folder, mutant.metadata, entry, f"tests.testing.mutants:{mutant.backend.__name__}"):
        return bad()


#: Groups whose checks are so quick that all of them are run over each mutant.
QUICK = ("descriptor", "metadata", "execute", "transforms")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if mutant.group == "generation" else [])
        for name, mutant in MUTANTS.items()
    ],
)
def test_a_mutant_fails_where_it_is_broken(name: str, workspace: Path, tmp_path: Path, monkeypatch) -> None:
    """Of a group that takes long, all cases of the concerned checks are run: those that do not concern the fault pass."""
    monkeypatch.chdir(tmp_path)  # some of them leave files where they are run
    mutant = MUTANTS[name]
    concerned = mutant.runs or sorted({each.partition("[")[0] for each in mutant.fails})
    found = run_mutant(mutant, workspace, tmp_path, only=() if mutant.group in QUICK else concerned)
    assert {*found} == mutant.fails, found


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "generation"])
def test_the_backend_without_a_fault_passes(group: str, workspace: Path, tmp_path: Path) -> None:
    with installed(tmp_path, METADATA, "toy", "tests.testing.toy_backend:ToyBackend"):
        report = run_conformance(ToyBackend, groups=[group], workspace=workspace)
    assert not report.bad, {each.id: each.message for each in report.bad}
    assert report.conforms


@pytest.mark.slow
def test_the_backend_without_a_fault_generates(workspace: Path) -> None:
    checks = {check for mutant in MUTANTS.values() for check in mutant.runs}
    report = run_conformance(ToyBackend, only=sorted(checks), workspace=workspace)
    assert not report.bad, {each.id: each.message for each in report.bad}
    assert report.conforms


def test_every_group_has_mutants() -> None:
    assert {mutant.group for mutant in MUTANTS.values()} | {"imports"} == set(
        GROUPS
    )  # those of imports are in test_doors.py
