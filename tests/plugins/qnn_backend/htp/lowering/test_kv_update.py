from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir

from qeff_framework.dialect import reference
from qeff_framework.lowering import OneHotUpdates
from tests.plugins.qnn_backend.htp.simulator import lowered, needs_simulator, simulate, worst

POSITIONS = np.array([[2, 3, 4, -1], [0, -1, -1, -1]])


def model() -> onnx_ir.Model:
    return onnx_ir.serde.deserialize_model(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["": 18, "qeff": 1]>
            update (int64[2, 4] position_ids, float[2, 2, 8, 4] past, float[2, 2, 4, 4] new) => (float[2, 2, 8, 4] y) {
                y = qeff.KVUpdate (past, new, position_ids)
            }"""
        )
    )


def feeds(poison: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    new = rng.standard_normal((2, 2, 4, 4)).astype(np.float32)
    new = np.where((POSITIONS < 0)[:, None, :, None], np.float32(poison), new)
    return {"position_ids": POSITIONS, "past": rng.standard_normal((2, 2, 8, 4)).astype(np.float32), "new": new}


@needs_simulator
def test_padding_that_has_overflowed_writes_nothing_in_the_simulator(tmp_path: Path) -> None:
    given = feeds(1e38)
    expected = [reference.kv_update(given["past"], given["new"], POSITIONS)]
    assert worst(expected, simulate(lowered(model(), OneHotUpdates()), given, tmp_path)) < 0.01
