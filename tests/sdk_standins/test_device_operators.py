"""Row R11 in detail: the stand-in device's index operators against numpy, and its storage formats."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tests.sdk_standins.graphs import ACCELERATOR, make_model
from tests.sdk_standins.qaic.qaic_standin import block_formats
from tests.sdk_standins.qaic.qaic_standin.compiler.weights import matmul_weight_axes
from tests.sdk_standins.qaic.qaic_standin.runtime.device_operators import use_device_semantics

INT32_MAX = 2**31 - 1
OPSETS = [17, 18]


def run(operator: str, *values: np.ndarray, opset: int = 18, drop: bool = False) -> np.ndarray:
    """Evaluate one operator as the body of an accelerator function with the device's semantics."""
    names = ["data", "indices", "updates"][: len(values)]
    formals = ", ".join(names)
    header = f'<opset_import: ["" : {opset}], domain: "{ACCELERATOR}">'
    function = onnx.parser.parse_function(f"{header} F ({formals}) => (r) {{ r = {operator} ({formals}) }}")
    graph = helper.make_graph(
        [helper.make_node("F", names, ["r"], domain=ACCELERATOR)],
        "g",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, values, strict=True)
        ],
        [helper.make_tensor_value_info("r", helper.np_dtype_to_tensor_dtype(values[0].dtype), None)],
    )
    model = make_model(graph, opset=opset, functions=[function])
    use_device_semantics(model, drop_negative_scatter=drop)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, dict(zip(names, values, strict=True)))
    return np.asarray(result)


def in_range(index: np.ndarray, dims: np.ndarray, *, drop: bool = False) -> tuple[bool, tuple[int, ...]]:
    wrapped = np.where(index < 0, index + dims, index) if not drop else index
    return bool(((wrapped >= 0) & (wrapped < dims)).all()), tuple(wrapped.tolist())


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("drop", [False, True])
def test_r11_scatter_nd(opset: int, drop: bool) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    # Every cell of the first two axes once, so that no two updates compete.
    cells = np.array(list(itertools.product(range(2), range(3))), np.int64)
    for last in ([0, 4, 5, INT32_MAX, -1, -5], [-6, 2, 3, 1, 0, 99]):
        indices = np.concatenate([cells, np.array(last)[:, None]], axis=1)[None]
        updates = rng.standard_normal((1, 6, 4)).astype(np.float32)
        expected = data.copy()
        for index, update in zip(indices[0], updates[0], strict=True):
            inside, place = in_range(index, np.array([2, 3, 5]), drop=drop)
            if inside:
                expected[place] = update
        np.testing.assert_array_equal(run("ScatterND", data, indices, updates, opset=opset, drop=drop), expected)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("batch_dims", [0, 1, 2])
def test_r11_gather_nd(opset: int, batch_dims: int) -> None:
    data = np.arange(1, 2 * 3 * 5 * 4 + 1, dtype=np.float32).reshape(2, 3, 5, 4)
    rng = np.random.default_rng(1)
    indices = rng.integers(-7, 8, (2, 3, 6, 3 - batch_dims))
    indices[0, 0, 0, -1] = INT32_MAX
    dims = np.array(data.shape[batch_dims:3])
    expected = np.zeros((*indices.shape[:-1], 4), np.float32)
    for place in np.ndindex(indices.shape[:-1]):
        inside, index = in_range(indices[place], dims)
        if inside:
            expected[place] = data[(*place[:batch_dims], *index)]
    np.testing.assert_array_equal(run(f"GatherND <batch_dims = {batch_dims}>", data, indices, opset=opset), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_r11_gather(axis: int) -> None:
    data = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    indices = np.array([[0, 1], [-1, INT32_MAX], [-9, 9]])
    expected = np.take(data, np.clip(indices, -data.shape[axis], data.shape[axis] - 1), axis=axis)
    inside = np.array([[1, 1], [1, 0], [0, 0]], np.float32)
    trailing = data.ndim - 1 - (axis % data.ndim)
    expected = expected * inside.reshape(*inside.shape, *[1] * trailing)
    np.testing.assert_array_equal(run(f"Gather <axis = {axis}>", data, indices), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_r11_elements(axis: int) -> None:
    rng = np.random.default_rng(2)
    data = rng.standard_normal((3, 4)).astype(np.float32)
    size = data.shape[axis]
    shape = (2, 4) if axis == 0 else (3, 2)
    # One index inside and one beyond, so that no two updates compete.
    indices = np.full(shape, INT32_MAX)
    indices[(0, slice(None)) if axis == 0 else (slice(None), 0)] = 1 - size
    inside = indices < 0
    safe = np.where(inside, indices + size, 0)
    gathered = np.where(inside, np.take_along_axis(data, safe, axis=axis), 0)
    np.testing.assert_array_equal(run(f"GatherElements <axis = {axis}>", data, indices), gathered)

    updates = rng.standard_normal(shape).astype(np.float32)
    scattered = data.copy()
    for place in map(tuple, np.argwhere(inside)):
        target = list(place)
        target[axis] = safe[place]
        scattered[tuple(target)] = updates[place]
    np.testing.assert_array_equal(run(f"ScatterElements <axis = {axis}>", data, indices, updates), scattered)
    np.testing.assert_array_equal(run(f"ScatterElements <axis = {axis}>", data, indices, updates, drop=True), data)


def test_r11_only_accelerator_functions_are_changed() -> None:
    function = onnx.parser.parse_function(
        '<opset_import: ["" : 18], domain: "com.qti.aisw.onnx"> F (d, i) => (r) { r = GatherND (d, i) }'
    )
    model = make_model(
        helper.make_graph([helper.make_node("GatherND", ["d", "i"], ["r"])], "g", [], []), functions=[function]
    )
    before = model.SerializeToString()
    use_device_semantics(model, drop_negative_scatter=False)
    assert model.SerializeToString() == before


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70))
def test_bfloat16_agrees_with_another_implementation(values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(block_formats.round_to_bfloat16(array), expected)


def block(exponent: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-(2.0**exponent), 2.0**exponent, width=32), min_size=1, max_size=70)


@given(block(10))
@example([1e-45])
def test_mxint8_error_bound_and_idempotence(values: list[float]) -> None:
    array = np.array([values], np.float32)
    rounded, elements = block_formats.quantize_mxint8(array)
    padded = np.pad(array[0], (0, -len(values) % 32)).reshape(-1, 32)
    largest = np.repeat(np.abs(padded).max(axis=1), 32)[: len(values)]
    # Half a step of 2**-6 of the block's power of two; the largest element may be cut to 127 steps.
    assert (np.abs(rounded - array)[0] <= np.maximum(largest * 2.0**-6, 2.0**-133)).all()
    assert elements.dtype == np.int8
    np.testing.assert_array_equal(block_formats.quantize_mxint8(rounded)[0], rounded)


@given(block(4))
@example([1e-45])
def test_mxfp6_values_are_e2m3_numbers(values: list[float]) -> None:
    array = np.array(values, np.float32)[:, None]
    rounded = block_formats.round_to_mxfp6(array, 0)
    codes = {0, *(m / 8 for m in range(8)), *((1 + m / 8) * 2.0**e for e in range(3) for m in range(8))}
    for start in range(0, len(values), 32):
        part, exact = rounded[start : start + 32, 0], array[start : start + 32, 0]
        largest = np.abs(exact).max()
        scale = 2.0 ** max(np.floor(np.log2(float(largest))) - 2, -127) if largest else 1.0
        assert {float(v) for v in np.abs(part) / np.float32(scale)} <= codes
        assert (np.abs(part - exact) <= scale / 4 + np.maximum(0, np.abs(exact) - 7.5 * scale)).all()


def test_mxfp6_blocks_run_along_the_summed_axis() -> None:
    matrix = np.ones((64, 2), np.float32)
    matrix[:32, 0] = 2.0**10
    matrix[0, 0] = 1.0
    rounded = block_formats.round_to_mxfp6(matrix, -2)
    # 1.0 beside 1024 in one block of the first axis is lost; the other column keeps its ones.
    assert rounded[0, 0] == 0
    assert (rounded[:, 1] == 1).all()
    assert block_formats.round_to_mxfp6(matrix, -1)[0].tolist() == [1, 1]


def test_matmul_weights_are_found() -> None:
    weights = {name: numpy_helper.from_array(np.ones((2, 2), np.float32), name) for name in "abcd"}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("Gemm", ["1", "b"], ["2"], transB=1),
        helper.make_node("Transpose", ["c"], ["ct"], perm=[1, 0]),
        helper.make_node("MatMul", ["2", "ct"], ["3"]),
        helper.make_node("Add", ["3", "d"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [], list(weights.values()))
    assert matmul_weight_axes(make_model(graph)) == {"a": -2, "b": -1, "c": -1}
