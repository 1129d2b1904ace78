"""Specializations that no compiler could make a program of."""

from __future__ import annotations

from pathlib import Path

import pytest

from qeff_framework.contracts import ExportedModel, Specialization
from qeff_framework.errors import CompileError
from qeff_framework.sessions import check_specializations
from tests.sessions.programs import program

COMPILED = program()
EXPORTED = ExportedModel(
    directory=Path("nowhere"),
    task="causal-lm",
    model_file="model.onnx",
    inputs=COMPILED.inputs,
    outputs=COMPILED.outputs,
    states=COMPILED.states,
)
DIMS = {"batch_size": 2, "seq_len": 1, "ctx_len": 8, "full_batch_size": 3}


def sizes(name: str = "decode", **dims: int | None) -> Specialization:
    changed = {**DIMS, **dims}
    return Specialization(name=name, dims={dim: value for dim, value in changed.items() if value is not None})


def test_what_can_share_its_states_is_taken() -> None:
    assert len(COMPILED.specializations) > 1
    check_specializations(EXPORTED, COMPILED.specializations, backend="acme")


@pytest.mark.parametrize(
    ("specializations", "message"),
    [
        ((), "no specialization was given: acme compiles for static shapes only"),
        ((sizes(), sizes(seq_len=4)), "several specializations have the name decode"),
        ((sizes(seq_len=None),), "'decode' has no value for seq_len: acme compiles"),
        ((sizes(seq_len=9),), "'decode' has seq_len 9 and ctx_len 8: a step must fit"),
        ((sizes(seq_len=5, comp_ctx_lengths=4),), "'decode' has seq_len 5 and comp_ctx_lengths 4"),
        ((sizes(encoder_seq_len=5, encoder_ctx_len=4),), "'decode' has encoder_seq_len 5 and encoder_ctx_len 4"),
        ((sizes("a"), sizes("b", ctx_len=9)), r"the retained state past different sizes: \(3, 8\) and \(3, 9\)"),
    ],
    ids=["none", "one name", "unbound", "context", "compute context", "source", "states"],
)
def test_what_cannot_work_is_refused(specializations: tuple[Specialization, ...], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        check_specializations(EXPORTED, specializations, backend="acme")
