"""What decides whether an export or a program is found again, and that the caller's module stays what it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.artifacts import cache_key
from qeff_framework.contracts import ExportedModel, ExportRequest
from qeff_framework.errors import (
    ArtifactError,
    BackendError,
    BackendNotInstalledError,
    BackendUnavailableError,
    CompileError,
    OptionError,
)
from qeff_framework.export.hooks import CoreHooks
from qeff_framework.extensions.timing import TimingExtension
from qeff_framework.key_parts import extensions_part, replacements_part, transform_part
from qeff_framework.plugin_api import CompileOptions, hookimpl
from qeff_framework.relay import Relay
from qeff_framework.runtime import load_compiled
from qeff_framework.sources import CheckpointSource, ModuleSource
from tests.checkpoints import save_tiny_checkpoint
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


def test_a_destination_with_another_program_is_refused_before_the_export(
    model: QEFFAutoModelForCausalLM, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    program = model.compile(RecordingBackend, compile_dir=here, **SIZES)
    exported: list[torch.nn.Module] = []
    RecordingHooks.passes = {"torch": [Pass("Other", change=lambda module: bool(exported.append(module)))]}
    with pytest.raises(ArtifactError, match="here: it is not empty and does not hold this artifact"):
        model.compile(RecordingBackend, compile_dir=here, **SIZES)
    assert exported == []
    RecordingHooks.passes = {}
    assert model.compile(RecordingBackend, compile_dir=here, **SIZES).directory == program.directory


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


@pytest.fixture
def _doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_doubles")
def test_a_torch_transform_leaves_the_callers_module_alone() -> None:
    """A module that is being trained goes on with it, and torch's defaults are those of the process again."""
    module = tiny_causal_lm("llama")[0].float().train().requires_grad_(True)
    module.lm_head.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def silence(subject: torch.nn.Module) -> bool:
        assert not subject.training
        assert torch.get_default_dtype() == torch.float32
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
    assert all(part.training for part in module.modules())
    assert {name for name, value in module.named_parameters() if not value.requires_grad} == {"lm_head.weight"}
    assert torch.get_default_dtype() == torch.float64


def test_the_generation_config_of_a_module_is_part_of_what_it_is() -> None:
    """The artifact carries it: a module with other end tokens must not find the artifact of this one."""
    module = tiny_causal_lm("llama")[0]
    before = ModuleSource(module).identity()
    assert ModuleSource(module).identity() == before

    module.generation_config.eos_token_id = 77

    assert ModuleSource(module).identity() != before


# --- what is in memory --------------------------------------------------------------------------------------------------


def test_what_a_module_does_is_part_of_what_it_is() -> None:
    """Weights, config and class name alone do not tell: code, buffers, attributes and hooks decide as well."""

    def identity(change: Callable[[torch.nn.Module], object] = lambda module: None) -> str:
        module = tiny_causal_lm("llama")[0]
        change(module)
        return cache_key(ModuleSource(module).identity())

    def scale_frequencies(module: torch.nn.Module) -> None:
        module.get_buffer("model.rotary_emb.inv_freq").mul_(3)

    def double(module: torch.nn.Module) -> None:
        def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
            return super(type(self), self).forward(*args, **kwargs)

        module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})

    def train(module: torch.nn.Module) -> None:
        module.train().requires_grad_(False)
        module.config._name_or_path = "/somewhere/else"

    different = [scale_frequencies, double, lambda module: module.register_forward_hook(print)]
    assert len({identity(), *map(identity, different)}) == len(different) + 1
    assert identity(train) == identity()


def test_what_cannot_be_told_apart_is_never_found_again(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    module = tiny_causal_lm("llama")[0]
    with (tmp_path / "file").open("w") as stream:
        module.model.layers[0].mlp.stream = stream
        identities = [cache_key(ModuleSource(module).identity()) for _ in range(2)]
        assert len(set(identities)) == 2
        assert "is built anew each time" in caplog.text
        assert "mlp.stream is a _io.TextIOWrapper, whose state cannot be read" in caplog.text


def test_a_replaced_function_of_a_part_is_in_the_key_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_causal_lm("llama")
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip"}}
    assert replacements_part(config) == {}
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", lambda self, x: x)
    assert set(replacements_part(config)) == {"patches"}


def test_extensions_count_unless_they_only_look_on() -> None:
    class Rewriting:
        @hookimpl(wrapper=True, specname="export")
        def rewrite(self, request: object) -> Iterator[object]:
            return (yield)

    def keys(extension: object) -> list[object]:
        relay = Relay(None, implementation=None, extensions={"x": extension}, origin="core")
        return [extensions_part(relay, stage) for stage in ("export", "compile")]

    assert keys(TimingExtension()) == [{}, {}]
    assert set(keys(Rewriting())[0]["extensions"]) == {"x"}
    assert keys(Rewriting())[1] == {}


def test_transforms_of_one_name_from_two_packages_are_two() -> None:
    mine, theirs = Pass("Fuse"), Pass("Fuse")
    theirs.__module__ = "another_backend.passes"
    assert transform_part(mine) == "tests:Fuse@1"
    assert transform_part(theirs) == "another_backend:Fuse@1"


# --- what an artifact says about itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_a_config_describes_the_module_as_it_is(model_type: str, tmp_path: Path) -> None:
    module = tiny_causal_lm(model_type, tie_word_embeddings=False)[0]
    source = ModuleSource(module)
    source.save_companions(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == source.config()

    layers = next(part for part in module.base_model.children() if isinstance(part, torch.nn.ModuleList))
    del layers[1:]
    module.set_input_embeddings(torch.nn.Embedding(77, 32))
    source.save_companions(tmp_path)
    changed = json.loads((tmp_path / "config.json").read_text())
    assert changed["num_hidden_layers" if "num_hidden_layers" in changed else "n_layer"] == 1
    assert changed["vocab_size"] == 77
    assert len(changed.get("layer_types") or [None]) == 1


def test_a_replaced_field_of_a_checkpoint_is_in_the_config_of_the_artifact(tmp_path: Path) -> None:
    source = CheckpointSource(save_tiny_checkpoint(tmp_path / "checkpoint"), {"num_hidden_layers": 1})
    source.load("AutoModelForCausalLM")
    (tmp_path / "artifact").mkdir()
    source.save_companions(tmp_path / "artifact")
    assert json.loads((tmp_path / "artifact/config.json").read_text())["num_hidden_layers"] == 1


def test_a_backend_with_a_part_in_the_export_shares_it_with_nobody(
    model: QEFFAutoModelForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an installed package, whose source is in no key: its export must not be taken for the core's, or for that of another
    of its versions or options, on which what its hooks do may depend.
    """

    class Exporting(RecordingHooks):
        @hookimpl
        def export(self, request: ExportRequest) -> ExportedModel:
            exported = CoreHooks().export(request)
            return replace(exported, metadata={**exported.metadata, "exported_by": "it"})

    monkeypatch.setattr("tests.recording_backend.RecordingHooks", Exporting)
    monkeypatch.setattr("qeff_framework.key_parts.source_part", lambda relay: {})
    shared = model.export().directory

    def export_of(**options: object) -> str:
        compiled = model.compile(RecordingBackend, **SIZES, **options)
        assert compiled.metadata["exported_by"] == "it"
        return json.loads((compiled.directory / "qconfig.json").read_text())["qpc_config"]["QEff_config"]["export_dir"]

    exports = [str(shared), export_of(), export_of(num_cores=4)]
    RecordingBackend.versions = {"sdk": "2"}
    exports.append(export_of())
    assert len(set(exports)) == len(exports)


def test_other_code_of_the_core_is_another_export_and_another_program(
    model: QEFFAutoModelForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.compile(RecordingBackend, **SIZES).directory, model.export().directory
    monkeypatch.setattr("qeff_framework.model.core_digest", lambda: "of other files")
    assert model.compile(RecordingBackend, **SIZES).directory != before[0]
    assert model.export().directory != before[1]


@pytest.mark.parametrize("place", [None, "here"], ids=["in the store", "at a destination"])
def test_a_missing_compiler_is_told_before_the_export_and_is_not_needed_for_what_exists(
    model: QEFFAutoModelForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str | None
) -> None:
    def missing(self: RecordingBackend, options: CompileOptions) -> None:
        raise BackendUnavailableError("no compiler lies in /opt; install it")

    asked = {**SIZES, "compile_dir": tmp_path / place if place else None}
    there = model.compile(RecordingBackend, **asked)
    monkeypatch.setattr(RecordingBackend, "check_compiler", missing)
    assert model.compile(RecordingBackend, **asked).directory == there.directory
    monkeypatch.setattr(QEFFAutoModelForCausalLM, "_export", lambda *_, **__: pytest.fail("it is exported"))
    for other in ({"rebuild": True, **asked}, {**SIZES, "num_cores": 3}):
        with pytest.raises(BackendUnavailableError, match="'recording'.*no compiler lies in /opt; install it"):
            model.compile(RecordingBackend, **other)


def test_weights_that_no_device_holds_are_refused_before_the_model_is_traced(
    model: QEFFAutoModelForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path))
    told = []

    def too_many(self: RecordingBackend, options: CompileOptions, numbers: int) -> None:
        told.append(numbers)
        raise CompileError(f"no device holds {numbers} numbers")

    monkeypatch.setattr(RecordingBackend, "check_weights", too_many)
    monkeypatch.setattr("qeff_framework.relay.Relay.export", lambda *_, **__: pytest.fail("it is traced"))
    with pytest.raises(CompileError, match="no device holds"):
        model.compile(RecordingBackend, **SIZES)
    module = tiny_causal_lm("llama")[0]
    assert told == [sum(weight.numel() for weight in {*module.parameters()})]
    assert not list(tmp_path.glob("exports/*"))


def test_a_backend_that_was_passed_as_a_class_loads_what_it_compiled(model: QEFFAutoModelForCausalLM) -> None:
    compiled = model.compile(backend=RecordingBackend, ctx_len=32, prefill_seq_len=4)
    with pytest.raises(BackendError, match="'recording'.* does not answer execute"):
        model.load()
    with pytest.raises(BackendError, match="'recording'.* does not answer execute"):
        load_compiled(compiled.directory, backend=RecordingBackend)
    with pytest.raises(BackendNotInstalledError, match="backend=YourBackend"):
        load_compiled(compiled.directory)
    with pytest.raises(OptionError, match="'side_file' is an option of the compilation.*-O"):
        load_compiled(compiled.directory, backend=RecordingBackend, side_file="x")


def test_an_edited_hook_does_not_return_yesterdays_program(
    model: QEFFAutoModelForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model.compile(RecordingBackend, **SIZES).directory
    assert model.compile(RecordingBackend, **SIZES).directory == first
    exported = model.export().directory
    monkeypatch.setattr("qeff_framework.key_parts.source_digest", lambda modules: "of an edited file")
    assert model.compile(RecordingBackend, **SIZES).directory != first
    assert model.export().directory == exported

    compiled = RecordingHooks.compiled
    model.compile(RecordingBackend, **SIZES, rebuild=True)
    assert RecordingHooks.compiled == compiled + 1
