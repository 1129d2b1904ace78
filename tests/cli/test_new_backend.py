"""What ``qeff new-backend`` writes, and where it refuses to."""

from __future__ import annotations

import pytest

from qeff_framework.plugin_api import API_VERSION


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


@pytest.mark.parametrize("variant", ["external", "python"])
def test_every_file_is_told_and_no_word_is_left_to_replace(qeff, tmp_path, variant):
    """`tests/examples` installs both variants and runs their tests."""
    result = qeff("new-backend", "My-NPU", "--compiler", variant, "--dir", tmp_path, "--json")
    assert result.code == 0, result.err
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(texts) == len(result.json["files"])
    assert not any(f"@{word}@" in text for text in texts.values() for word in ("name", "Name", "package", "api"))
    assert f'api = "{API_VERSION}"' in texts["descriptor.py"]
