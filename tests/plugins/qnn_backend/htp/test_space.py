"""Too little disk is refused before a file is begun: a full disk would be told after the graphs, or by the vendor's library."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from qeff_framework.errors import ArtifactError
from qnn_backend.htp.graph_files import write_graphs
from qnn_backend.htp.host_tables import save_table
from tests.lowering.graphs import parse


def _graphs(folder: Path) -> None:
    models = {}
    weight = ir.tensor(np.ones((1, 512), np.float32), name="w")
    for name in ("prefill", "decode"):
        model = parse("g (float[1, 512] x, float[1, 512] w) => (float[1, 512] y) { y = Add (x, w) }")
        value = model.graph.inputs.pop()
        value.const_value = weight
        model.graph.register_initializer(value)
        models[name] = model
    write_graphs(models, folder)


@pytest.mark.parametrize("write", [_graphs, lambda folder: save_table(folder / "t.npy", np.ones((512, 2), np.float32))])
def test_too_little_disk(write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The weight that both graphs have is written once, and the table in float16.
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2047))
    with pytest.raises(ArtifactError, match="and the disk of .* has"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2048))
    write(tmp_path)
    assert list(tmp_path.iterdir())
