from __future__ import annotations

from pathlib import Path

import pytest

from qeff_framework.contracts import CompiledModel, ExportedModel, Specialization, StateSpec, TensorSpec
from qeff_framework.errors import ArtifactError

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
    ],
)
def test_a_damaged_description_is_told(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "compiled.json").write_text(text)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        CompiledModel.load(tmp_path)
    # Where there is none the directory may hold anything, and deleting it is no advice.
    assert str(caught.value).endswith("Delete the directory and build the artifact again") == (text is not None)
