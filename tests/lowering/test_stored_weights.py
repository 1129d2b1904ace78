"""Casts, joins and transposes of weights that lie in files become part of the weights."""

from __future__ import annotations

import errno
import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qeff_framework.errors import ArtifactCorruptError, ArtifactError
from qeff_framework.lowering import (
    content_key,
    link_stored_weights,
    narrow_stored_weights,
    stored_weights,
    turned_matrix,
    weight_of,
    write_weights,
)
from qeff_framework.lowering.stored_weights import STORED, StoredWeight, fold_stored_weights, load_portable

EXPERTS, ROWS, COLUMNS = 3, 4, 6


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A product with the transposed experts, each of which lies in the file by itself, twice, in float16."""
    numbers = np.random.default_rng(0).standard_normal((EXPERTS, 2, ROWS, COLUMNS)).astype(np.float16)
    (tmp_path / "weights.safetensors").write_bytes(b"header" + numbers.tobytes())
    size = numbers[0, 0].nbytes
    parts = []
    for side in range(2):
        for expert in range(EXPERTS):
            name = f"up{STORED}{expert}.{side}"
            tensor = ir.ExternalTensor(
                "weights.safetensors",
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
    assert isinstance(weight, StoredWeight)
    unordered = np.concatenate([piece.ravel() for piece in weight.unordered_pieces()])
    assert np.array_equal(np.sort(unordered), np.sort(weight.numpy(), axis=None))
    written = io.BytesIO()
    weight.tofile(written)
    assert written.getvalue() == weight.numpy().tobytes()


def _result(model: Path) -> np.ndarray:
    hidden = np.random.default_rng(1).standard_normal((EXPERTS, 1, COLUMNS)).astype(np.float32)
    return ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"hidden": hidden})[0]


def test_weights_that_are_linked_take_no_disk_and_compute_the_same(stored: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    model = load_portable(stored)

    assert link_stored_weights(model, target, types={ir.DataType.BFLOAT16}) == []
    assert link_stored_weights(model, target, types={ir.DataType.FLOAT16}) == ["weights.safetensors"]
    assert write_weights(model, target, "model.onnx.data", inline_bytes=16) == []
    ir.save(model, target / "model.onnx")

    assert (target / "weights.safetensors").samefile(stored.with_name("weights.safetensors"))
    assert np.array_equal(_result(target / "model.onnx"), _result(stored))


def test_where_a_link_is_refused_weights_are_written_in_16_bits(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*names: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    target = tmp_path / "bundle"
    target.mkdir()
    model = load_portable(stored)

    assert link_stored_weights(model, target, types={ir.DataType.FLOAT16}) == []
    assert narrow_stored_weights(model, types={ir.DataType.FLOAT16}, inline_bytes=16) == 1
    assert write_weights(model, target, "model.onnx.data", inline_bytes=16) == ["model.onnx.data"]
    ir.save(model, target / "model.onnx")

    assert (target / "model.onnx.data").stat().st_size == EXPERTS * 2 * ROWS * COLUMNS * 2
    assert np.array_equal(_result(target / "model.onnx"), _result(stored))


def test_too_little_space_is_refused_before_anything_is_written(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    monkeypatch.setattr(StoredWeight, "nbytes", 10**15)

    with pytest.raises(
        ArtifactError, match=r"writing 1 weights 2 times needs 2000000\.0 GB, and the disk of .*bundle has"
    ):
        write_weights(load_portable(stored), target, "model.onnx.data", copies=2)
    assert not list(target.iterdir())


def test_a_disk_that_fills_up_leaves_no_file_of_weights(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(weight: StoredWeight, file: io.BufferedWriter) -> None:
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "bundle"
    target.mkdir()
    monkeypatch.setattr(StoredWeight, "tofile", full)

    with pytest.raises(OSError, match="No space left"):
        write_weights(load_portable(stored), target, "model.onnx.data", inline_bytes=16)
    assert not list(target.iterdir())


def test_bfloat16_is_rounded_to_float16_and_holes_stay_holes(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    numbers = np.array([1.0, 0.2, 3.0e38, -70000.0, 1e-9], np.float32)
    file.write_bytes((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    os.truncate(file, 1 << 22)
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}), ir_version=10)
    sizes = {"few": (0, 5), "zeros": (1 << 20, 1 << 20)}
    for name, (offset, count) in sizes.items():
        stored = ir.ExternalTensor(
            file.name, offset, count * 2, ir.DataType.BFLOAT16, shape=ir.Shape([count]), name=name, base_dir=tmp_path
        )
        value = ir.Value(
            name=f"{name}{STORED}1", shape=stored.shape, type=ir.TensorType(stored.dtype), const_value=stored
        )
        model.graph.register_initializer(value)
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
        cast.outputs[0].name, cast.outputs[0].shape = name, stored.shape
        model.graph.append(cast)
        reader = ir.node("Neg", cast.outputs)
        model.graph.append(reader)
        model.graph.outputs.append(reader.outputs[0])
    fold_stored_weights(model)

    assert narrow_stored_weights(model, types={ir.DataType.FLOAT16}, inline_bytes=4) == 2
    weights = {name.partition(".")[0]: weight_of(value) for name, value in model.graph.initializers.items()}
    with np.errstate(over="ignore"):
        expected = ((numbers.view(np.uint32) >> 16) << 16).view(np.float32).astype(np.float16)
    assert np.array_equal(weights["few"].numpy(), expected)
    assert not weights["zeros"].numpy().any()
    write_weights(model, tmp_path, "model.onnx.data", inline_bytes=4)
    written = (tmp_path / "model.onnx.data").stat()
    assert written.st_size == 10 + (2 << 20)
    assert written.st_blocks * 512 < 1 << 20
    assert weight_of(model.graph.initializers[f"few{STORED}1"]).numpy().tolist() == expected.tolist()


def test_the_holes_of_a_weight_are_not_read_and_stay_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "_CHUNK_BYTES", 1 << 16)
    file, numbers = tmp_path / "weights.safetensors", np.zeros((1024, 512), np.float16)
    numbers[:4] = 1.5
    file.write_bytes(numbers[:4].tobytes())
    os.truncate(file, numbers.nbytes)
    stored = ir.ExternalTensor(
        file.name, 0, numbers.nbytes, ir.DataType.FLOAT16, shape=ir.Shape(numbers.shape), name="w", base_dir=tmp_path
    )
    value = ir.Value(name="w", shape=stored.shape, type=ir.TensorType(stored.dtype), const_value=stored)
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 18}), ir_version=10)
    fold_stored_weights(model)

    weight = weight_of(value)
    assert isinstance(weight, StoredWeight)
    assert weight.filled_bytes == 1 << 16
    assert [piece.size for piece in weight.unordered_pieces()] == [1 << 15, *[1] * 15]
    # Zeros that were written take no disk either; those with a sign are no zeros.
    numbers[-1] = -0.0
    with file.open("r+b") as opened:
        opened.seek(1 << 18)
        opened.write(bytes(1 << 18))
        opened.seek(numbers.nbytes - 1024)
        opened.write(numbers[-1].tobytes())
    write_weights(model, tmp_path, "model.onnx.data", inline_bytes=4)
    written = (tmp_path / "model.onnx.data").stat()
    assert written.st_size == numbers.nbytes
    assert written.st_blocks * 512 <= 3 << 16
    assert weight_of(value).numpy().tobytes() == numbers.tobytes()


@pytest.mark.parametrize("permutation", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_a_turned_weight_is_never_held_whole(
    permutation: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(0).standard_normal((128, 96, 64)).astype(np.float16)
    monkeypatch.setattr(stored_weights, "_CHUNK_BYTES", numbers.nbytes // 16)
    monkeypatch.setattr(stored_weights, "_TURNED_BYTES", numbers.nbytes // 5)
    (tmp_path / "weights").write_bytes(numbers.tobytes())
    stored = ir.ExternalTensor(
        "weights", 0, numbers.nbytes, ir.DataType.FLOAT16, shape=ir.Shape(numbers.shape), name="w", base_dir=tmp_path
    )
    value = ir.Value(name="w", shape=stored.shape, type=ir.TensorType(stored.dtype), const_value=stored)
    fold_stored_weights(ir.Model(ir.Graph([], [], nodes=[], initializers=[value], opset_imports={}), ir_version=10))
    weight = weight_of(value)
    assert isinstance(weight, StoredWeight)
    turned = weight.turned(permutation)

    tracemalloc.start()
    try:
        with (tmp_path / "written").open("wb") as file:
            turned.tofile(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "written").read_bytes() == numbers.transpose(permutation).tobytes()
    # As was told before: a part of the numbers.
    assert turned.working_bytes / 2 < peak < turned.working_bytes < numbers.nbytes / 2
    assert np.array_equal(turned.numpy(), numbers.transpose(permutation))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_turned_matrix_takes_one_copy(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).standard_normal((300, 257)).astype(kind)
    monkeypatch.setattr(stored_weights, "_CHUNK_BYTES", numbers.nbytes // 16)
    (tmp_path / "weights").write_bytes(numbers.tobytes())
    dtype = ir.DataType.from_numpy(numbers.dtype)
    tensor = ir.ExternalTensor(
        "weights", 0, numbers.nbytes, dtype, shape=ir.Shape(numbers.shape), name="w", base_dir=tmp_path
    )
    value = ir.Value(name="w", shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
    fold_stored_weights(ir.Model(ir.Graph([], [], nodes=[], initializers=[value], opset_imports={}), ir_version=10))
    assert isinstance(weight_of(value), StoredWeight)

    for source in (weight_of(value), ir.Tensor(numbers)):
        tracemalloc.start()
        try:
            found = turned_matrix(source)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found.flags.c_contiguous
        assert found.dtype == kind
        assert np.array_equal(found, numbers.T)
        assert peak < 1.5 * numbers.nbytes


def test_the_same_bytes_are_one_weight(stored: Path) -> None:
    first, second = (weight_of(load_portable(stored).graph.initializers["up"]) for _ in range(2))

    assert content_key(first) == content_key(second)
    assert isinstance(first, StoredWeight)
    assert content_key(first.turned((1, 0, 2))) != content_key(second)


def test_a_file_that_was_cut_is_an_error(stored: Path) -> None:
    weight = weight_of(load_portable(stored).graph.initializers["up"])
    file = stored.with_name("weights.safetensors")
    file.write_bytes(file.read_bytes()[:-8])

    with pytest.raises(ArtifactCorruptError, match="shorter than it was when it was exported"):
        weight.numpy()
