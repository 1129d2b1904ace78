"""Constants in the range of a device, and weights one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qeff_framework.lowering import (
    FLOAT16_MIN,
    Float16Epsilons,
    LimitConstants,
    Limits,
    computed_tensor,
    content_key,
    limit_constants,
    replace_content,
    weight_of,
    weights,
)
from tests.lowering.graphs import parse, run, session

FLOAT16 = Limits(lowest=FLOAT16_MIN, low=FLOAT16_MIN, highest=-FLOAT16_MIN, high=-FLOAT16_MIN, infinities=False)
MASKS = Limits(lowest=-1e4, low=-50.0)


def model() -> ir.Model:
    made = parse(
        """m (float[4] x, int64[1] n) => (float[4] y, int64[1] k) <float[4] w = {1.0, 1.0, 1.0, 1.0}, int64[1] big = {1099511627776}> {
            low = Constant <value_float = -1.0e30> () high = Max (x, low) y = Add (high, w) k = Add (n, big)
        }"""
    )
    content = np.array([1.0, 1e6, -1e30, -np.inf], np.float32)
    replace_content(made.graph.initializers["w"], ir.tensor(content, name="w"))
    return made


@pytest.mark.parametrize("small", [True, False], ids=["kept in memory", "computed when written"])
@pytest.mark.parametrize(
    ("limits", "weight", "low"),
    [(FLOAT16, [1, 65504, -65504, -np.inf], -65504.0), (MASKS, [1, 1e6, -50, -50], -50.0)],
    ids=["a range", "masks"],
)
def test_what_is_beyond_moves_and_the_rest_stays(
    limits: Limits, weight: list[float], low: float, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(limit_constants, "_SMALL", 0)
    made = model()
    lowering = LimitConstants(limits)

    assert lowering(made)

    np.testing.assert_array_equal(weight_of(made.graph.initializers["w"]).numpy(), np.array(weight, np.float32))
    found = run(session(made), {"x": np.full(4, -1e35, np.float32), "n": np.array([1])})
    np.testing.assert_array_equal(found["y"], np.array(weight, np.float32) + np.float32(low))
    assert found["k"] == 2**40 + 1
    assert not lowering(made)


def test_larger_constants_are_weights_and_are_not_looked_at() -> None:
    made = model()
    assert LimitConstants(MASKS, max_elements=3)(made)  # the constant of the node
    assert weight_of(made.graph.initializers["w"]).numpy()[2] == np.float32(-1e30)


def test_weights_are_read_from_their_file_one_at_a_time(tmp_path: Path) -> None:
    made = parse(
        "m (float[2] x) => (float[2] y) <float[2] a = {1., 2.}, float[2] b = {3., 4.}> { s = Add (a, x) y = Add (s, b) }"
    )
    ir.save(made, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded, other = ir.load(tmp_path / "m.onnx"), ir.load(tmp_path / "m.onnx")

    held = []
    for value in weights(loaded):
        held.append(weight_of(value).numpy().tolist())
        tensors = [weight_of(each) for each in loaded.graph.initializers.values()]
        assert [tensor.raw is not None for tensor in tensors].count(True) == 1
    assert held == [[1.0, 2.0], [3.0, 4.0]]
    assert all(weight_of(value).raw is None for value in loaded.graph.initializers.values())

    keys = [[content_key(weight_of(value)) for value in one.graph.initializers.values()] for one in (loaded, other)]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 2


def test_a_computed_tensor_is_computed_when_it_is_written(tmp_path: Path) -> None:
    made = parse("m (float[2] x) => (float[2] y) <float[2] a = {1., 2.}> { y = Add (a, x) }")
    calls = []
    content = computed_tensor("a", (2,), np.float32, lambda: calls.append(1) or np.array([5, 6], np.float32))
    replace_content(made.graph.initializers["a"], content)
    assert not calls
    ir.save(made, tmp_path / "m.onnx", external_data="m.data")
    assert calls
    assert weight_of(ir.load(tmp_path / "m.onnx").graph.initializers["a"]).numpy().tolist() == [5.0, 6.0]
    with pytest.raises(ValueError, match="x is no weight"):
        weight_of(made.graph.inputs[0])


def test_what_keeps_a_divisor_above_zero_stays_above_zero_in_float16() -> None:
    made = parse(
        """m (float[2] x, float[2] y) => (float[2] sum, float[2] larger, float[2] product, float[2] usual)
        <float tiny = {1e-15}, float[1] low = {1e-12}, float small = {1e-6}> {
            sum = Add (x, tiny) larger = Max (low, y) product = Mul (x, tiny) usual = Add (y, small)
        }"""
    )

    assert Float16Epsilons()(made)

    zeros = {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)}
    found = run(session(made), zeros)
    assert {name: float(value[0].astype(np.float16)) for name, value in found.items()} == {
        "sum": 2.0**-14,
        "larger": 2.0**-14,
        "product": 0.0,
        "usual": float(np.float16(1e-6)),
    }
    assert run(session(made), {**zeros, "x": np.ones(2, np.float32)})["product"][0] == np.float32(1e-15)
    assert not Float16Epsilons()(made)
