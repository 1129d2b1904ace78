"""Both forms of a mixture of experts compute what the dialect says."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qeff_framework.contracts import Specialization
from qeff_framework.dialect import reference
from qeff_framework.dialect.functions import attach_functions
from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.lowering import ExpertOps

EXPERTS, CHOSEN, HIDDEN, INNER = 6, 2, 8, 5
DECODE = Specialization(name="decode", dims={"batch_size": 2, "seq_len": 1, "ctx_len": 16})
PREFILL = Specialization(name="prefill", dims={"batch_size": 2, "seq_len": 8, "ctx_len": 16})


def mixture(gate: Gate, weights: dict[str, np.ndarray]) -> ir.Model:
    attributes = ", ".join(
        f"{name}: {'int' if isinstance(value, int) else 'float'} = {value + 0}" for name, value in asdict(gate).items()
    )
    op_type = "MoEBias" if len(weights) == 4 else "MoE"
    constants = ", ".join(f"float{list(array.shape)} {name}" for name, array in weights.items())
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18, "qeff": 1]> mixture (float[T, {HIDDEN}] hidden,'
        f" int64[T, {CHOSEN}] ids, float[T, {CHOSEN}] shares, {constants}) => (float[T, {HIDDEN}] mixed)"
        f"{{ mixed = qeff.{op_type} <{attributes}> (hidden, ids, shares, {', '.join(weights)}) }}"
    )
    model = ir.serde.deserialize_model(proto)
    attach_functions(model)
    return model


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("specializations", "form"),
    [((DECODE,), "Gather"), ((PREFILL,), "Equal"), ((PREFILL, DECODE), "Equal")],
    ids=["decode", "prefill", "both"],
)
@pytest.mark.parametrize(
    "gate",
    [
        Gate(),
        Gate(activation=Activation.GELU),
        Gate(activation=Activation.GELU_TANH),
        Gate(alpha=1.702, limit=1.5, offset=1.0, interleaved=1),
        Gate(activation=Activation.RELU, gated=0),
        Gate(activation=Activation.RELU_SQUARED, gated=0),
    ],
    ids=str,
)
def test_numbers_equal_the_dialect(gate, specializations, form, biased):
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    columns = INNER * (2 if gate.gated else 1)
    weights = {"up": normal(EXPERTS, HIDDEN, columns), "down": normal(EXPERTS, INNER, HIDDEN)}
    if biased:
        weights |= {"up_bias": normal(EXPERTS, columns), "down_bias": normal(EXPERTS, HIDDEN)}
    model = mixture(gate, weights)
    hidden, shares = normal(5, HIDDEN), random.random((5, CHOSEN)).astype(np.float32)
    weights["up"][0] = 1e30  # An expert that nobody chooses overflows.
    ids = np.stack([1 + random.permutation(EXPERTS - 1)[:CHOSEN] for _ in range(5)])

    assert ExpertOps(specializations)(model)

    ops = {node.op_type for node in model.graph}
    assert form in ops
    assert ("Equal" in ops) == (form == "Equal")
    assert not {"MoE", "MoEBias", "If"} & ops
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    (mixed,) = session.run(None, {"hidden": hidden, "ids": ids, "shares": shares, **weights})
    biases = (weights["up_bias"], weights["down_bias"]) if biased else None
    expected = reference.moe(hidden, ids, shares, weights["up"], weights["down"], biases, gate=gate)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
