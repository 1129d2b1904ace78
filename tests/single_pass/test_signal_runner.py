"""`SignalRunner`: rows of any lengths over programs of fixed shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework.contracts import CompiledModel, Specialization, TensorSpec
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.single_pass.signal_runner import SignalRunner


class _Frames:
    """A program that sums what is no padding over frames of four samples."""

    def __init__(self) -> None:
        self.compiled = CompiledModel(
            directory=Path(),
            backend="none",
            task="ctc",
            specializations=tuple(
                Specialization(name=f"encode_{length}", dims={"batch_size": 2, "seq_len": length}) for length in (8, 16)
            ),
            inputs=(
                TensorSpec(name="input_values", dtype="float32", shape=("batch_size", "seq_len")),
                TensorSpec(name="attention_mask", dtype="int64", shape=("batch_size", "seq_len")),
            ),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch_size", "num_frames", 1)),),
            metadata={"frames": {"stride": 4, "offset": 0}},
        )
        self.lengths: list[int] = []

    def run(self, inputs: Any) -> dict[str, Any]:
        values, mask = inputs["input_values"], inputs["attention_mask"]
        assert values.shape == mask.shape
        assert not (values * (1 - mask)).any()
        self.lengths.append(values.shape[1])
        return {"logits": (values * mask).reshape(2, -1, 4).sum(axis=2)[..., None]}


def test_rows_are_padded_grouped_and_cut() -> None:
    session = _Frames()
    rows = [np.arange(length, dtype=np.float32) for length in (5, 12, 4)]
    outputs, lengths = SignalRunner(session)({"input_values": rows})  # type: ignore[arg-type]
    assert session.lengths == [16, 16]
    assert lengths.tolist() == [1, 3, 1]
    assert outputs["logits"][..., 0].tolist() == [[6, 0, 0], [6, 22, 38], [6, 0, 0]]


def test_a_frame_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = _Frames()
    monkeypatch.setattr(session, "run", lambda inputs: {"logits": np.full((2, 2, 1), np.nan, np.float32)})
    with pytest.raises(ExecutionError, match="the logits of row 0 contain NaN"):
        SignalRunner(session)({"input_values": [np.ones(8, np.float32)]})  # type: ignore[arg-type]
    # -inf excludes a class.
    monkeypatch.setattr(session, "run", lambda inputs: {"logits": np.full((2, 2, 1), -np.inf, np.float32)})
    SignalRunner(session)({"input_values": [np.ones(8, np.float32)]})  # type: ignore[arg-type]


def test_a_mask_cuts_rows() -> None:
    session = _Frames()
    mask = [[1] * 8 + [0] * 4, [1] * 4 + [0] * 8]
    outputs, lengths = SignalRunner(session)(  # type: ignore[arg-type]
        {"input_values": np.ones((2, 12), np.float32), "attention_mask": np.array(mask)}
    )
    assert session.lengths == [8]
    assert lengths.tolist() == [2, 1]
    assert outputs["logits"][..., 0].tolist() == [[4, 4], [4, 0]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_features": [[1.0]]}, "a mapping with input_values"),
        ({"input_values": [["speech.wav"]]}, "row 0 of input_values must hold numbers"),
        (
            {"input_values": np.ones((1, 8), np.complex64)},
            "row 0 of input_values must hold real numbers, and is of type complex64",
        ),
        ({"input_values": [], "attention_mask": None}, "no inputs were given"),
        ({"input_values": np.ones((1, 20))}, "a length of 20, the program was compiled for seq_len 8, 16"),
        ({"input_values": np.ones((1, 3))}, "row 0 of the inputs has a length of 3, too little for a single frame"),
        ({"input_values": np.ones((1, 8, 2))}, r"has the shape \[8, 2\], the program takes \[seq_len\]"),
        ({"input_values": np.full((1, 8), np.nan)}, "holds numbers that are not finite"),
        ({"input_values": np.ones((1, 4)), "attention_mask": [[0, 1, 1, 1]]}, "must be 1 from the start"),
        ({"input_values": np.ones((1, 4)), "attention_mask": [[1, 1]]}, "must hold 1 or 0 for each of the 4 places"),
        ({"input_values": np.ones((1, 4)), "input_ids": [[1]]}, "does not take input_ids"),
    ],
)
def test_what_the_program_cannot_take(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SignalRunner(_Frames())(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, -1]], "row 0 of input_ids holds the id -1, the model knows 0 to 8"),
        (np.array([[3, 4], [9, 4]]), "row 1 of input_ids holds the id 9"),
        ([[3.5, 4.0]], "row 0 of input_ids must hold whole numbers, and is of type float64"),
    ],
)
def test_ids_of_texts_without_a_row_are_refused(ids: Any, message: str) -> None:
    """Of a model of images and texts; a lookup takes -1 for the last row."""
    session = _Frames()
    tokens = TensorSpec(name="input_ids", dtype="int64", shape=("batch_size", "seq_len"))
    session.compiled = replace(
        session.compiled, inputs=(tokens, *session.compiled.inputs[1:]), metadata={"vocab_size": 9}
    )
    with pytest.raises(InputError, match=message):
        SignalRunner(session)({"input_ids": ids})  # type: ignore[arg-type]
