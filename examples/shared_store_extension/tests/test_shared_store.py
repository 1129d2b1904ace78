"""Two machines, each with a store of its own on disk, share a third one in memory."""

from __future__ import annotations

import json

import fsspec
import pytest

from qeff_framework import QEFFAutoModelForFeatureExtraction
from qeff_framework.plugin_api import Backend, Capabilities, CompiledModel, CompileRequest, Probe, hookimpl
from qeff_shared_store import INDEX, PLACE_VARIABLE

SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
PLACE = "memory://shared/qeff"


class Hooks:
    compiled = 0

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        type(self).compiled += 1
        (request.output_dir / "parts").mkdir()
        (request.output_dir / "parts" / "program").write_text(f"for {len(request.model.graph)} nodes")
        return CompiledModel.from_request(request, program={"file": "parts/program"})


class Plain(Backend):
    name = "plain"
    capabilities = Capabilities(tasks=frozenset({"encoder"}))
    implementation = f"{__name__}:Hooks"

    def probe(self) -> Probe:
        return Probe(can_compile=True, can_execute=False, hardware=False, rank=0)

    def fingerprint(self) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def module():
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES)).eval()


@pytest.fixture
def compiled_on(monkeypatch, tmp_path, module):
    """Compiles on a machine; tells how often the backend has compiled so far, and the artifact."""
    monkeypatch.setenv(PLACE_VARIABLE, PLACE)
    monkeypatch.setattr(Hooks, "compiled", 0)
    files = fsspec.filesystem("memory")
    files.store.clear()

    def compile_on(machine: str, **options: object):
        monkeypatch.setenv("QEFF_HOME", str(tmp_path / machine))
        model = QEFFAutoModelForFeatureExtraction(module, pooling=None)
        artifact = model.compile(Plain, seq_len=4, extensions=["shared_store"], **options)
        return Hooks.compiled, artifact

    return compile_on


def test_what_one_machine_has_built_another_one_takes(compiled_on, tmp_path):
    count, first = compiled_on("one")
    assert count == 1
    count, second = compiled_on("two")
    assert count == 1
    assert second.directory.parents[1] == tmp_path / "two"
    assert second.directory.name == first.directory.name
    assert (second.directory / "parts" / "program").read_text() == (first.directory / "parts" / "program").read_text()
    # The framework has added its own files to both.
    assert {path.name for path in first.directory.iterdir()} == {path.name for path in second.directory.iterdir()}


def test_what_is_damaged_is_built_here_and_put_there_again(compiled_on, caplog):
    _, artifact = compiled_on("one")
    files = fsspec.filesystem("memory")
    [program] = files.glob("/shared/qeff/*/parts/program")
    files.pipe_file(program, b"something else")

    count, again = compiled_on("two")
    assert count == 2
    assert "parts/program does not fit its digest" in caplog.text
    assert (again.directory / "parts" / "program").read_bytes() == (
        artifact.directory / "parts" / "program"
    ).read_bytes()
    assert compiled_on("three")[0] == 2


def test_an_index_that_leads_outside_is_not_followed(compiled_on, caplog, tmp_path):
    compiled_on("one")
    files = fsspec.filesystem("memory")
    for index in files.glob(f"/shared/qeff/*/{INDEX}"):
        files.pipe_file(index, json.dumps({"files": {"../../outside": "0"}}).encode())
    assert compiled_on("two")[0] == 2
    assert "leads out of the artifact" in caplog.text
    assert not list(tmp_path.rglob("outside"))


def test_a_store_that_cannot_be_reached_stops_nothing(compiled_on, caplog, monkeypatch):
    files = fsspec.filesystem("memory")

    def fails(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    for name in ("cat_file", "put_file"):
        monkeypatch.setattr(type(files), name, fails)
    assert compiled_on("one")[0] == 1
    assert "cannot be read, building here: no route to host" in caplog.text
    assert "is not put into the shared store" in caplog.text
