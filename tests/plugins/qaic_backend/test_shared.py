"""The names that other backends may use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qaic_backend import shared


def test_every_name_is_there_and_others_are_not() -> None:
    assert sorted(shared._PLACES) == sorted(shared.__all__)
    for name in shared.__all__:
        assert getattr(shared, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compile_model'"):
        shared.compile_model  # noqa: B018 - the access is what is tested


def test_opening_a_session_loads_neither_onnx_nor_the_lowering() -> None:
    code = (
        "import sys; from qaic_backend.shared import QaicRuntimeOptions, open_session; "
        "print([name for name in ('onnx', 'onnx_ir', 'qaic_backend.lowering') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
