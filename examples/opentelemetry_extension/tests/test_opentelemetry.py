"""The spans of a compilation, written by the real exporter."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from qeff_framework import QEFFAutoModelForFeatureExtraction
from qeff_framework.plugin_api import (
    Backend,
    Capabilities,
    CompiledModel,
    CompileError,
    CompileRequest,
    Probe,
    hookimpl,
)
from qeff_opentelemetry import FILE_VARIABLE

SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


class Hooks:
    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        if request.options.num_cores == 13:
            raise CompileError("unlucky")
        (request.output_dir / "program").write_text("x")
        return CompiledModel.from_request(request, program={})


class Plain(Backend):
    name = "plain"
    capabilities = Capabilities(tasks=frozenset({"encoder"}))
    implementation = f"{__name__}:Hooks"

    def probe(self) -> Probe:
        return Probe(can_compile=True, can_execute=False, hardware=False, rank=0)

    def fingerprint(self) -> dict[str, str]:
        return {}


@pytest.fixture
def model(monkeypatch, tmp_path):
    from transformers import BertConfig, BertModel

    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "store"))
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "trace.jsonl"))
    return QEFFAutoModelForFeatureExtraction(BertModel(BertConfig(**SIZES)).eval(), pooling=None)


def test_each_stage_is_a_span_and_a_failure_is_recorded(model, tmp_path):
    first = model.compile(Plain, seq_len=4, extensions=["opentelemetry"])
    assert model.compile(Plain, seq_len=4).directory == first.directory, "the extension is no part of the key"
    with pytest.raises(CompileError, match="unlucky"):
        model.compile(Plain, seq_len=4, num_cores=13, extensions=["opentelemetry"])

    spans = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    names = [span["name"] for span in spans]
    # Two namings of transforms each time; the export is found again.
    assert Counter(names) == {"qeff.transform": 4, "qeff.export": 1, "qeff.compile": 2}
    compiled, failed = (span for span in spans if span["name"] == "qeff.compile")
    assert compiled["attributes"]["qeff.backend"] == "plain"
    assert compiled["attributes"]["qeff.key"][:16] == first.directory.name[-16:]
    assert compiled["status"]["status_code"] != "ERROR"
    assert failed["status"]["status_code"] == "ERROR"
    assert "unlucky" in failed["events"][0]["attributes"]["exception.message"]
