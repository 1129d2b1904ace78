"""``qeff inspect``: what lies in a directory, and whether it is intact."""

from __future__ import annotations

import shutil

import pytest

from qeff_framework.artifacts import manifest
from qeff_framework.contracts import CompiledModel


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def test_compiled_artifact(qeff, artifact):
    result = qeff("inspect", artifact, "--full", "--json")

    assert result.code == 0
    document, compiled = result.json, CompiledModel.load(artifact)
    assert document["kind"] == "compiled"
    assert document["backend"]["name"] == "ort_sim"
    assert document["transforms"]["onnx"] == list(compiled.transforms)
    assert document["options"] == dict(compiled.options)
    assert [item["name"] for item in document["specializations"]] == ["prefill", "decode"]
    assert len(document["states"]) == 4
    assert document["versions"]["onnxruntime"]
    assert sum(item["size"] for item in document["files"]) == document["size"]
    assert (document["intact"], document["problems"]) == (True, [])


def test_text_joins_states_that_are_alike(qeff, artifact):
    result = qeff("inspect", artifact)

    assert "4 x kv state float32 [batch_size, 2, ctx_len, 8]" in result.out
    assert "past_key.0" not in result.out
    assert "prefill: batch_size=2, ctx_len=32, seq_len=4" in result.out


def test_export(qeff, exported):
    document = qeff("inspect", exported, "--json").json

    assert document["kind"] == "export"
    assert document["backend"] is None
    assert document["versions"]["torch"]
    assert {"input_ids", "position_ids"} <= {item["name"] for item in document["inputs"]}


def test_damaged_file_is_1(qeff, copy):
    (copy / "config.json").write_text("{}")

    result = qeff("inspect", copy, "--json")

    assert result.code == 1
    assert [item["file"] for item in result.json["problems"]] == ["config.json"]
    assert "config.json is truncated" in result.err


def test_full_reads_large_files_whose_time_stamp_is_kept(qeff, copy, artifact, monkeypatch):
    monkeypatch.setattr(manifest, "ALWAYS_READ_BYTES", 0)
    before = (artifact / "config.json").stat()
    content = (copy / "config.json").read_text()
    (copy / "config.json").write_text(content.replace("32", "33"))
    shutil.copystat(artifact / "config.json", copy / "config.json")
    assert (copy / "config.json").stat().st_mtime_ns == before.st_mtime_ns

    assert qeff("inspect", copy).code == 0
    assert qeff("inspect", copy, "--verify", "full").code == 1
    assert qeff("inspect", copy, "--full").code == 1


def test_without_a_manifest_the_rest_is_shown(qeff, copy):
    (copy / "manifest.json").unlink()

    result = qeff("inspect", copy)

    assert result.code == 1
    assert "ort_sim" in result.out
    assert "manifest.json is missing" in result.err


def test_unreadable_description_is_1(qeff, copy):
    (copy / "compiled.json").write_text("{")

    result = qeff("inspect", copy)

    assert (result.code, result.out) == (1, "")
    assert "compiled.json cannot be read" in result.err
