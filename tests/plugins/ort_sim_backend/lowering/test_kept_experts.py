"""Mixtures of experts with packed weights on ONNX Runtime's kernel for them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import onnx_ir
import pytest

from ort_sim_backend.lowering import passes
from qeff_framework.dialect import reference
from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.lowering import DequantizedExperts
from tests.lowering.graphs import lowered, op_types, parse, run, session

EXPERTS, CHOSEN, HIDDEN, INNER, BLOCK = 5, 2, 48, 32, 16


def packed_mixture(gate: Gate, *, bits: int, biased: bool) -> tuple[onnx_ir.Model, dict[str, np.ndarray]]:
    """A graph of one mixture with random blocks, of the first weight an odd number, and what lies in them."""
    outer, rng = INNER * (2 if gate.gated else 1), np.random.default_rng(0)
    contents: dict[str, np.ndarray] = {}
    for name, outputs, inputs in (("up", outer, HIDDEN), ("down", HIDDEN, INNER)):
        rows = (EXPERTS, outputs, inputs // BLOCK)
        contents[f"{name}_levels"] = rng.integers(0, 256, (*rows, BLOCK * bits // 8), dtype=np.uint8)
        contents[f"{name}_scales"] = ((rng.random(rows) + 0.5) / 2**bits).astype(np.float32)
        contents[f"{name}_zero_points"] = rng.integers(0, 2**bits, rows, dtype=np.uint8)
    if biased:
        contents["up_bias"] = rng.standard_normal((EXPERTS, outer)).astype(np.float32)
        contents["down_bias"] = rng.standard_normal((EXPERTS, HIDDEN)).astype(np.float32)
    attributes = ", ".join(
        f"{name}: {'int' if isinstance(value, int) else 'float'} = {value + 0}"
        for name, value in {"bits": bits, **asdict(gate)}.items()
    )
    kinds = {np.dtype(np.uint8): "uint8", np.dtype(np.float32): "float"}
    constants = ", ".join(f"{kinds[array.dtype]}{list(array.shape)} {name}" for name, array in contents.items())
    model = parse(
        f"mixture (float[T, {HIDDEN}] hidden, int64[T, {CHOSEN}] ids, float[T, {CHOSEN}] shares, {constants})"
        f" => (float[T, {HIDDEN}] mixed)"
        f"{{ mixed = qeff.QuantizedMoE{'Bias' * biased} <{attributes}> (hidden, ids, shares, {', '.join(contents)}) }}"
    )
    for value in list(model.graph.inputs)[3:]:
        model.graph.inputs.remove(value)
        value.const_value = onnx_ir.tensor(contents[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model, contents


def deviation(model: onnx_ir.Model, contents: dict[str, np.ndarray], gate: Gate, bits: int) -> float:
    """Largest difference between a lowered mixture and the dialect, over the largest result."""
    random = np.random.default_rng(1)
    hidden = random.standard_normal((6, HIDDEN)).astype(np.float32)
    ids = np.stack([random.permutation(EXPERTS)[:CHOSEN] for _ in range(6)])
    shares = (random.random((6, CHOSEN)) * 2.5).astype(np.float32)
    parts = list(contents.values())
    expected = reference.quantized_moe(
        hidden, ids, shares, tuple(parts[:3]), tuple(parts[3:6]), tuple(parts[6:]) or None, bits=bits, gate=gate
    )
    mixed = run(session(model), {"hidden": hidden, "ids": ids, "shares": shares})["mixed"]
    return float(np.abs(mixed - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("bits", "precision"), [(4, "fp32"), (8, "fp32"), (4, "w4"), (8, "w8")])
@pytest.mark.parametrize(
    ("gate", "biased"),
    [(Gate(), False), (Gate(alpha=1.702, limit=1.5, offset=1.0, interleaved=1), True), (Gate(limit=1.5), True)],
    ids=["silu", "interleaved", "halves with biases"],
)
def test_the_levels_are_those_of_the_graph(gate: Gate, biased: bool, bits: int, precision: str) -> None:
    """The kernel's code for 8 bits rounds activations, so float32 gets the matrices."""
    model, contents = packed_mixture(gate, bits=bits, biased=biased)
    changed = lowered(model, passes(precision))
    assert ("QMoE" in op_types(changed)) == ((bits, precision) != (8, "fp32"))
    assert deviation(changed, contents, gate, bits) < (1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(
    ("gate", "bits", "op"), [(Gate(activation=Activation.GELU), 4, "MoE"), (Gate(), 8, "MoEBias")], ids=["gelu", "silu"]
)
def test_what_the_kernel_lacks_is_dequantised(gate: Gate, bits: int, op: str) -> None:
    model, contents = packed_mixture(gate, bits=bits, biased=op == "MoEBias")
    changed = lowered(model, (DequantizedExperts(),))
    assert op_types(changed) == [op]
    assert deviation(changed, contents, gate, bits) < 1e-5
    assert "QMoE" not in op_types(lowered(packed_mixture(gate, bits=bits, biased=False)[0], passes("fp32")))
