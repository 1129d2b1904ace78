from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.artifacts.keys import key_value
from qeff_framework.contracts import (
    CompiledModel,
    CompileRequest,
    ExportedModel,
    Specialization,
    StateSpec,
    TensorSpec,
)
from qeff_framework.errors import ArtifactCorruptError, ArtifactError
from qeff_framework.options import CompileOptions

INPUTS = (TensorSpec(name="input_ids", dtype="int64", shape=("batch_size", "seq_len")),)
STATES = (StateSpec(input="past_key.0", output="past_key.0_RetainedState"),)


def test_an_export_survives_writing_and_reading(tmp_path: Path) -> None:
    exported = ExportedModel(
        directory=tmp_path,
        task="causal-lm",
        model_file="model.onnx",
        inputs=INPUTS,
        outputs=(),
        states=STATES,
        transforms=("Fold@1",),
        metadata={"vocab_size": 8},
    )
    exported.save()
    assert ExportedModel.load(tmp_path) == exported


def test_a_program_survives_writing_and_reading(tmp_path: Path) -> None:
    compiled = CompiledModel(
        directory=tmp_path,
        backend="acme",
        task="encoder",
        specializations=(Specialization(name="decode", dims={"batch_size": 1, "seq_len": 1}),),
        inputs=INPUTS,
        outputs=(),
        states=STATES,
        options={"num_cores": 4},
        program={"file": "x", "nested": {"a": [1, 2]}},
    )
    compiled.save()
    assert CompiledModel.load(tmp_path) == compiled


def test_options_are_written_in_the_forms_that_keys_have(tmp_path: Path) -> None:
    """A backend's options may be members of an enumeration and sets, which JSON has no word for."""
    level = Enum("Level", {"HIGH": "high"})
    options = {"level": level.HIGH, "units": frozenset({"b", "a"})}
    compiled = CompiledModel(
        directory=tmp_path,
        backend="acme",
        task="encoder",
        specializations=(),
        inputs=(),
        outputs=(),
        states=(),
        options=options,
    )
    compiled.save()
    assert CompiledModel.load(tmp_path).options == {"level": "high", "units": ["a", "b"]} == key_value(options)


def test_a_side_file_is_written_as_its_name(tmp_path: Path) -> None:
    compiled = CompiledModel(
        directory=tmp_path,
        backend="acme",
        task="encoder",
        specializations=(),
        inputs=(),
        outputs=(),
        options={"config": Path("a.yaml")},
    )
    compiled.save()
    assert CompiledModel.load(tmp_path).options == {"config": "a.yaml"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "holds no"),
        ("{", "cannot be read"),
        ('{"backend": "ort\0"}', "Invalid control"),
        ("[]", "not a JSON"),
        ("{}", "lacks"),
        ('{"backend": null}', "'backend' is not str"),
        ('{"metadata": []}', "'metadata' is not dict"),
    ],
)
def test_a_damaged_description_is_told(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "compiled.json").write_text(text)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        CompiledModel.load(tmp_path)
    # Where there is none the directory may hold anything, and deleting it is no advice.
    assert str(caught.value).endswith("Delete the directory and build the artifact again") == (text is not None)


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../../x", "/etc/hostname", "C:\\x", "..\\x", "link", "link/x", "", 3]
)
def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "artifact"
    inner.mkdir()
    (inner / "link").symlink_to(tmp_path)
    compiled = CompiledModel(directory=inner, backend="acme", task="encoder", specializations=(), inputs=(), outputs=())
    with pytest.raises(ArtifactCorruptError, match="leads out of the directory"):
        compiled.path(name)


def test_names_inside_are_full_paths_also_where_the_directory_is_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    compiled = CompiledModel(
        directory=tmp_path / "link", backend="acme", task="encoder", specializations=(), inputs=(), outputs=()
    )
    assert compiled.path("program/a.bin") == tmp_path / "link" / "program" / "a.bin"


def test_an_answer_copies_what_the_request_says_and_takes_what_differs(tmp_path: Path) -> None:
    dims = ({"seq_len": 4, "ctx_len": 16}, {"seq_len": 1, "ctx_len": 16})
    state = StateSpec(input="past.0", output="past.0_RetainedState")
    exported = ExportedModel(
        directory=tmp_path, task="causal-lm", model_file="m", inputs=(), outputs=(), states=(state,), metadata={"a": 1}
    )
    nothing: Any = None
    request = CompileRequest(
        exported=exported,
        model=nothing,
        transforms=("Fuse@1",),
        specializations=tuple(Specialization(name=str(i), dims=item) for i, item in enumerate(dims)),
        options=CompileOptions(num_cores=2),
        output_dir=tmp_path,
        backend="acme",
    )
    assert [request.sizes(name) for name in ("seq_len", "ctx_len", "batch_size")] == [(1, 4), (16,), ()]
    renamed = (StateSpec(input="past_0", output="past_0_out"),)
    compiled = CompiledModel.from_request(request, program={"file": "x"}, states=renamed)
    assert (compiled.backend, compiled.transforms, compiled.specializations) == (
        "acme",
        ("Fuse@1",),
        request.specializations,
    )
    assert compiled.options == {"num_devices": 1, "num_cores": 2}
    assert (compiled.states, compiled.metadata) == (renamed, {"a": 1})
    assert CompiledModel.from_request(request, program={}) == request.result(program={})
    compiled.save()
    assert CompiledModel.load(tmp_path) == compiled
