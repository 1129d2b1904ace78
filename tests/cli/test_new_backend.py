"""``qeff new-backend`` writes a package that passes its own tests as soon as it is installed."""

from __future__ import annotations

import json

import pytest

from qeff_framework.plugin_api import API_VERSION
from qeff_framework.testing import BackendConformance
from tests.chained_environment import SHORT_DIALECT, SHORT_KIT, ChainedEnvironment


@pytest.mark.parametrize("name", ["4chip", "a b", "../up", "auto", "", "a.b", "x" * 70])
def test_names_that_cannot_be_typed_or_imported_are_refused(qeff, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = qeff("new-backend", name)
    assert result.code == 2
    assert "cannot be the name of a backend" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_left_alone(qeff, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty; name another folder with --dir" in qeff("new-backend", "acme", "--dir", tmp_path).err
    assert qeff("new-backend", "acme", "--dir", tmp_path / "mine.txt" / "below").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_name_that_is_installed_is_told(qeff, tmp_path):
    result = qeff("new-backend", "ORT-Sim", "--dir", tmp_path / "mine")
    assert result.code == 0
    assert "a backend named 'ort_sim' is installed, by the package qeff-ort-sim-backend " in result.err
    assert "is installed" not in qeff("new-backend", "acme", "--dir", tmp_path / "acme").err


def test_the_kit_has_the_checks_that_are_chosen_of_it():
    """Otherwise an operator of a generated package would not be checked."""

    class Kit(BackendConformance):
        backend = "ort_sim"

    checks = [name.removeprefix("test_dialect_") for name in dir(Kit)]
    assert [chosen for chosen in SHORT_DIALECT if not any(name.startswith(chosen) for name in checks)] == []


def test_what_is_generated_passes_its_own_tests(qeff, tmp_path):
    """Both variants, installed as an author installs them, without a package index."""
    folders = []
    for name, variant in (("acme", "external"), ("My-NPU", "python")):
        folders.append(tmp_path / variant)
        result = qeff("new-backend", name, "--compiler", variant, "--dir", folders[-1], "--json")
        assert result.code == 0, result.err
        texts = {path.name: path.read_text() for path in folders[-1].rglob("*") if path.is_file()}
        assert len(texts) == len(result.json["files"])
        assert not any(f"@{word}@" in text for text in texts.values() for word in ("name", "Name", "package", "api"))
        assert f'api = "{API_VERSION}"' in texts["descriptor.py"]

    environment = ChainedEnvironment.create(tmp_path / "environment")
    environment.install(folders)
    tests = [str(folder / "tests") for folder in folders]
    # `make authors` runs the conformance kit over both variants; here is what fits into the suite's time.
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-p", "tests.forked_compilers", "-k", SHORT_KIT]
    options += [f"--ignore={folders[1] / 'tests' / 'test_conformance.py'}"]
    tested = environment.run("pytest", *options, *tests)
    assert tested.returncode == 0, tested.stdout
    assert int(tested.stdout.rpartition(" passed")[0].split()[-1]) > 120
    told = environment.run("qeff_framework", "doctor", "acme", "--json")
    assert told.returncode == 0, told.stderr
    [found] = json.loads(told.stdout)["backends"]
    assert {check["name"]: check["status"] for check in found["checks"]} == {"compiler": "ok", "onnxruntime": "ok"}
