"""Casts, joins and transposes of weights that lie in files become part of the weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qeff_framework.errors import ArtifactCorruptError
from qeff_framework.lowering import content_key, weight_of
from qeff_framework.lowering.stored_weights import STORED, StoredWeight, load_portable

EXPERTS, ROWS, COLUMNS = 3, 4, 6


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A product with the transposed experts, each of which lies in the file by itself, twice, in float16."""
    numbers = np.random.default_rng(0).standard_normal((EXPERTS, 2, ROWS, COLUMNS)).astype(np.float16)
    (tmp_path / "weights").write_bytes(b"header" + numbers.tobytes())
    size = numbers[0, 0].nbytes
    parts = []
    for side in range(2):
        for expert in range(EXPERTS):
            name = f"up{STORED}{expert}.{side}"
            tensor = ir.ExternalTensor(
                "weights",
                6 + (expert * 2 + side) * size,
                size,
                ir.DataType.FLOAT16,
                shape=ir.Shape((1, ROWS, COLUMNS)),
                name=name,
                base_dir=tmp_path,
            )
            parts.append(ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
    hidden = ir.Value(name="hidden", shape=ir.Shape((EXPERTS, 1, COLUMNS)), type=ir.TensorType(ir.DataType.FLOAT))
    sides = [ir.node("Concat", parts[start : start + EXPERTS], {"axis": 0}) for start in (0, EXPERTS)]
    both = ir.node("Concat", [node.outputs[0] for node in sides], {"axis": 1})
    cast = ir.node("Cast", both.outputs, {"to": ir.DataType.FLOAT.value})
    turned = ir.node("Transpose", cast.outputs, {"perm": [0, 2, 1]})
    product = ir.node("MatMul", [hidden, turned.outputs[0]])
    for number, node in enumerate((*sides, both)):
        node.outputs[0].name = f"up{STORED}{10 + number}"
    cast.outputs[0].name, product.outputs[0].name = "up", "result"
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    product.outputs[0].shape = ir.Shape((EXPERTS, 1, 2 * ROWS))
    graph = ir.Graph(
        [hidden],
        product.outputs,
        nodes=[*sides, both, cast, turned, product],
        initializers=parts,
        opset_imports={"": 18},
        name="product",
    )
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_weight_is_what_the_graph_makes_of_the_file(stored: Path) -> None:
    model = load_portable(stored)

    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert list(model.graph.initializers) == ["up"]
    weight = weight_of(model.graph.initializers["up"])
    eye = np.broadcast_to(np.eye(COLUMNS, dtype=np.float32), (EXPERTS, COLUMNS, COLUMNS))
    session = ort.InferenceSession(str(stored), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"hidden": eye[:, row : row + 1]})[0] for row in range(COLUMNS)]
    assert np.array_equal(weight.numpy(), np.concatenate(rows, axis=1))
    written = io.BytesIO()
    weight.tofile(written)
    assert written.getvalue() == weight.numpy().tobytes()


def test_the_same_bytes_are_one_weight(stored: Path) -> None:
    first, second = (weight_of(load_portable(stored).graph.initializers["up"]) for _ in range(2))

    assert content_key(first) == content_key(second)
    assert isinstance(first, StoredWeight)
    assert content_key(first.turned((1, 0, 2))) != content_key(second)


def test_a_file_that_was_cut_is_an_error(stored: Path) -> None:
    weight = weight_of(load_portable(stored).graph.initializers["up"])
    file = stored.with_name("weights")
    file.write_bytes(file.read_bytes()[:-8])

    with pytest.raises(ArtifactCorruptError, match="shorter than it was when it was exported"):
        weight.numpy()
