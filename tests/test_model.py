"""What decides whether an export or a program is found again, and that the caller's module stays what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.sources import ModuleSource
from tests.recording_backend import Pass, RecordingBackend, RecordingHooks
from tests.tiny_models import tiny_causal_lm

SIZES = {"prefill_seq_len": 4, "ctx_len": 16}


@pytest.fixture(autouse=True)
def _fresh_backend(session_store: Path) -> Iterator[None]:
    yield
    RecordingHooks.passes, RecordingBackend.versions = {}, {"sdk": "1"}


@pytest.fixture
def model() -> QEFFAutoModelForCausalLM:
    return QEFFAutoModelForCausalLM(tiny_causal_lm("llama")[0])


def test_the_same_is_found_again_and_anything_else_is_not(model: QEFFAutoModelForCausalLM, tmp_path: Path) -> None:
    side_file = tmp_path / "side.yaml"
    side_file.write_text("a")

    def program(**options: object) -> Path:
        return model.compile(RecordingBackend, **{**SIZES, "side_file": side_file, **options}).directory

    first, compiled = program(), RecordingHooks.compiled
    assert program() == first
    assert RecordingHooks.compiled == compiled

    moved = tmp_path / "elsewhere.yaml"
    moved.write_text("a")
    assert program(side_file=moved) == first, "the content of a side file counts, not its path"

    different = {first, program(ctx_len=32), program(num_cores=4)}
    side_file.write_text("b")
    different.add(program())
    RecordingBackend.versions = {"sdk": "2"}
    different.add(program())
    RecordingHooks.passes = {"onnx": [Pass("Lower")]}
    different.add(program())
    RecordingHooks.passes = {"onnx": [Pass("Lower", version="2")]}
    different.add(program())
    assert len(different) == 7


def test_lowering_does_not_touch_the_shared_export(model: QEFFAutoModelForCausalLM) -> None:
    export = model.export().directory
    RecordingHooks.passes = {
        "onnx": [Pass("Lower", change=lambda graph: bool(graph.metadata_props.update(x="y")) or True)]
    }
    compiled = model.compile(RecordingBackend, **SIZES)
    assert compiled.transforms == ("Lower@1",)
    assert model.export().directory == export
    qconfig = json.loads((compiled.directory / "qconfig.json").read_text())
    assert qconfig["qpc_config"]["QEff_config"]["export_dir"] == str(export)
    assert qconfig["qpc_config"]["compiler_config"]["compile_dir"] == str(compiled.directory)
    assert qconfig["backend"]["fingerprint"] == {"sdk": "1"}


def test_other_weights_are_another_export() -> None:
    exports = {QEFFAutoModelForCausalLM(tiny_causal_lm("llama", seed)[0]).export().directory for seed in (0, 1, 0)}
    assert len(exports) == 2


def test_a_torch_transform_leaves_the_callers_module_alone() -> None:
    module = tiny_causal_lm("llama")[0]
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def silence(subject: torch.nn.Module) -> bool:
        with torch.no_grad():
            for parameter in subject.parameters():
                parameter.zero_()
        return True

    model = QEFFAutoModelForCausalLM(module)
    plain = model.export()
    RecordingHooks.passes = {"torch": [Pass("Silence", change=silence)]}
    model.compile(RecordingBackend, **SIZES)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert model.export().directory == plain.directory


def test_the_generation_config_of_a_module_is_part_of_what_it_is() -> None:
    """The artifact carries it: a module with other end tokens must not find the artifact of this one."""
    module = tiny_causal_lm("llama")[0]
    before = ModuleSource(module).identity()
    assert ModuleSource(module).identity() == before

    module.generation_config.eos_token_id = 77

    assert ModuleSource(module).identity() != before
