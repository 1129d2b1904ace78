"""Descriptors that do something when they are imported or asked fail in the checks about that."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qeff_framework.testing import Settings, run_conformance
from tests.testing.mutants import METADATA
from tests.testing.test_mutants import installed

#: What each module of `doors` breaks. They are imported in fresh processes, and by name only.
DOORS = {
    "loads_numpy": {"descriptor_is_light", "probe_is_light"},
    "loads_vendor_code": {"descriptor_is_light", "descriptor_loads_no_vendor_code", "probe_is_light"},
    "prints": {"import_does_nothing"},
    "sets_variables": {"import_does_nothing"},
    "starts_a_thread": {"import_does_nothing"},
    "leaves_a_file": {"import_does_nothing"},
    "is_slow": {"import_is_quick"},
    "probe_loads": {"probe_is_light"},
    "fingerprint_loads": {"probe_is_light"},
    "session_loads_torch": {"running_loads_no_model_library"},
}
FOLDER = Path(__file__).parent / "doors"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "session_loads_torch" else []) for name in DOORS]
)
def test_a_door_fails_where_it_is_broken(name: str, workspace: Path, tmp_path: Path, monkeypatch) -> None:
    from tests.testing.doors import session_loads_torch

    # What the module does when it is imported is done in the fresh processes of the kit; here only its class is needed.
    backend = session_loads_torch.Door if name == "session_loads_torch" else _shell(name)
    concerned = sorted(f"imports/{check}" for check in {*DOORS[name], "descriptor_is_light", "import_does_nothing"})
    with installed(tmp_path, METADATA, "toy", f"tests.testing.doors.{name}:Door"):
        report = run_conformance(backend, settings=Settings(), only=concerned, workspace=workspace)
    found = {each.id.removeprefix("imports/"): each.message for each in report.bad}
    assert {*found} == DOORS[name], found


def _shell(name: str) -> type:
    """A class with the name and the module of the door, made without importing it."""
    from tests.testing.toy_backend import ToyBackend

    return type("Door", (ToyBackend,), {"__module__": f"tests.testing.doors.{name}"})


def test_every_door_is_tested() -> None:
    files = {file.stem: file for file in FOLDER.glob("*.py")}
    assert {*files} == {*DOORS}
    assert all(ast.get_docstring(ast.parse(file.read_text())) for file in files.values())
