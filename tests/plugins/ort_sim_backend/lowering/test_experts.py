"""Mixtures of experts as one kernel."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import onnx_ir
import pytest

from ort_sim_backend.lowering import FusedExperts
from qeff_framework.dialect import reference
from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.lowering import RemoveUnused, WeightBlocks
from tests.lowering.graphs import lowered, op_types, parse, run, session

EXPERTS, CHOSEN, HIDDEN, INNER = 6, 3, 32, 32

SILU = Gate()
CLAMPED = Gate(alpha=1.702, limit=1.5, offset=1.0)
INTERLEAVED = Gate(alpha=1.702, limit=1.5, offset=1.0, interleaved=1)
RELU = Gate(activation=Activation.RELU, gated=0)
UNGATED_SILU = Gate(gated=0)


def mixture(gate: Gate, *, biased: bool) -> tuple[onnx_ir.Model, dict[str, np.ndarray]]:
    """A graph of one mixture with random constants, and the constants."""
    columns = INNER * (2 if gate.gated else 1)
    shapes = {"up": (EXPERTS, HIDDEN, columns), "down": (EXPERTS, INNER, HIDDEN)}
    if biased:
        shapes |= {"up_bias": (EXPERTS, columns), "down_bias": (EXPERTS, HIDDEN)}
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    attributes = ", ".join(
        f"{name}: {'int' if isinstance(value, int) else 'float'} = {value + 0}" for name, value in asdict(gate).items()
    )
    op_type = "MoEBias" if biased else "MoE"
    constants = ", ".join(f"float{list(shape)} {name}" for name, shape in shapes.items())
    model = parse(
        f"mixture (float[T, {HIDDEN}] hidden, int64[T, {CHOSEN}] ids, float[T, {CHOSEN}] shares, {constants})"
        f" => (float[T, {HIDDEN}] mixed)"
        f"{{ mixed = qeff.{op_type} <{attributes}> (hidden, ids, shares, {', '.join(weights)}) }}"
    )
    for value in list(model.graph.inputs)[3:]:
        model.graph.inputs.remove(value)
        value.const_value = onnx_ir.tensor(weights[value.name], name=value.name)
        model.graph.register_initializer(value)
    return model, weights


def mixed_and_expected(
    fused: onnx_ir.Model, weights: dict[str, np.ndarray], gate: Gate, *, biased: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What a lowered mixture makes of five tokens, and what the dialect says."""
    random = np.random.default_rng(1)
    hidden = random.standard_normal((5, HIDDEN)).astype(np.float32)
    ids = np.stack([random.permutation(EXPERTS)[:CHOSEN] for _ in range(5)])
    shares = (random.random((5, CHOSEN)) * 2.5).astype(np.float32)
    shares[1, 0], shares[2] = 0.0, 0.0  # an expert, and a token, without weight
    mixed = run(session(fused), {"hidden": hidden, "ids": ids, "shares": shares})["mixed"]
    biases = (weights["up_bias"], weights["down_bias"]) if biased else None
    return mixed, reference.moe(hidden, ids, shares, weights["up"], weights["down"], biases, gate=gate)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gate", [SILU, CLAMPED, INTERLEAVED, RELU, UNGATED_SILU], ids=str)
def test_numbers_equal_the_dialect(gate, biased):
    model, weights = mixture(gate, biased=biased)
    fused = lowered(model, (FusedExperts(), RemoveUnused()))
    assert "MoE" in op_types(fused)
    assert all(node.domain != "qeff" for node in fused.graph)

    mixed, expected = mixed_and_expected(fused, weights, gate, biased=biased)

    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.2)])
@pytest.mark.parametrize("gate", [SILU, CLAMPED, INTERLEAVED, RELU, UNGATED_SILU], ids=str)
def test_compressed_weights_give_nearly_the_numbers(gate, bits, tolerance):
    model, weights = mixture(gate, biased=True)
    fused = lowered(model, (FusedExperts(WeightBlocks(bits=bits, size=32)), RemoveUnused()))
    assert "QMoE" in op_types(fused)

    mixed, expected = mixed_and_expected(fused, weights, gate, biased=True)

    assert 0 < np.sqrt(np.square(mixed - expected).mean()) / expected.std() < tolerance


def test_sizes_that_are_no_multiple_of_a_block_stay_in_float32():
    model, _ = mixture(SILU, biased=False)

    assert "MoE" in op_types(lowered(model, (FusedExperts(WeightBlocks(bits=8, size=64)),)))


@pytest.mark.parametrize(
    "gate", [Gate(activation=Activation.GELU_TANH), Gate(activation=Activation.RELU_SQUARED, gated=0)]
)
def test_an_activation_that_the_kernel_lacks_keeps_the_body(gate):
    model, _ = mixture(gate, biased=False)

    assert not FusedExperts()(model)
    assert op_types(model) == ["MoE"]
    assert model.graph.node(0).domain == "qeff"
