"""Loops over the tokens of a step become straight graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qeff_framework.errors import CompileError
from qeff_framework.lowering import UnrollScan
from tests.lowering.graphs import op_types, parse, run, session

#: Two states, one of which a step may leave as it is; tokens and results along other axes; what is the same in every step.
LOOP = """loop (float[2, 3] sum, float[2] first, float[2, S, 3] tokens, int64[2, S] ids, float[3, 3] weight)
    => (float[2, 3] new_sum, float[2] new_first, float[2, S, 3] outputs, float[3, 2, S] others) {
    new_sum, new_first, outputs, others = Scan <
        num_scan_inputs = 2, scan_input_axes = [1, -1], scan_output_axes = [1, 2],
        body = step (float[2, 3] held, float[2] kept, float[2, 3] token, int64[2] id)
            => (float[2, 3] next, float[2] kept_on, float[2, 3] output, float[3, 2] other) {
            turned = Transpose (weight)
            product = MatMul (token, turned)
            zero = Constant <value_int = 0> ()
            is_token = GreaterOrEqual (id, zero)
            axes = Constant <value_ints = [1]> ()
            column = Unsqueeze (is_token, axes)
            summed = Add (held, product)
            next = Where (column, summed, held)
            kept_on = Identity (kept)
            output = Mul (next, next)
            other = Transpose (next)
        }
    > (sum, first, tokens, ids)
}"""


def feeds(length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    ids = np.array([[5, -1, 7, 8], [-1, 3, 4, -1]])[:, :length]
    return {"sum": normal(2, 3), "first": normal(2), "tokens": normal(2, length, 3), "ids": ids, "weight": normal(3, 3)}


def compare(model: ir.Model, changed: ir.Model, length: int) -> None:
    expected, found = (run(session(one), feeds(length)) for one in (model, changed))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)


def copy_of(model: ir.Model) -> ir.Model:
    return ir.serde.deserialize_model(ir.serde.serialize_model(model))


@pytest.mark.parametrize("length", [1, 4])
def test_a_known_length(length: int) -> None:
    model = parse(LOOP.replace("S,", f"{length},").replace("S]", f"{length}]"))
    changed = copy_of(model)

    assert UnrollScan()(changed)

    ops = op_types(changed)
    assert not {"Scan", "Min", "Less", "Slice"} & set(ops)
    # Of two transpositions in the body the one of the weight is the same in every step.
    assert ops.count("Transpose") == 1 + length
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    compare(model, changed, length)
    assert not UnrollScan()(changed)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_one_graph_for_every_length_up_to_the_longest(length: int) -> None:
    model = parse(LOOP)
    changed = copy_of(model)
    assert not UnrollScan()(changed)

    assert UnrollScan(4)(changed)

    assert op_types(changed).count("MatMul") == 4
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    compare(model, changed, length)


def test_a_state_that_passes_through_and_loops_in_loops() -> None:
    model = parse(
        """outer (float[2] total, float[3, 2, 2] rows) => (float[2] y, float[3, 2] seen) {
            y, seen = Scan <num_scan_inputs = 1, body = row (float[2] held, float[2, 2] row) => (float[2] last, float[2] before) {
                before = Identity (held) last = Scan <num_scan_inputs = 1, body = cell (float[2] inner, float[2] value) => (float[2] sum) {
                    doubled = Add (value, total) sum = Add (inner, doubled)
                }> (held, row)
            }> (total, rows)
        }"""
    )
    changed = copy_of(model)
    assert UnrollScan()(changed)
    assert not {"Scan"} & {node.op_type for node in changed.graph.all_nodes()}
    given = {"total": np.array([1.0, 2.0], np.float32), "rows": np.arange(12, dtype=np.float32).reshape(3, 2, 2)}
    expected, found = (run(session(one), given) for one in (model, changed))
    for name in ("y", "seen"):
        np.testing.assert_allclose(found[name], expected[name])


def test_loops_with_the_same_names_inside() -> None:
    loop = """Scan <num_scan_inputs = 1, body = step (float[2] held, float[2] token) => (float[2] next, float[2] seen) {
        doubled = Add (weight, weight) scaled = Mul (token, doubled) next = Add (held, scaled) seen = Neg (next) }>"""
    model = parse(
        f"""m (float[2] x, float[3, 2] tokens, float[2] weight) => (float[2] y, float[3, 2] second) {{
            middle, first = {loop} (x, tokens) y, second = {loop} (middle, first) }}"""
    )
    changed = copy_of(model)
    assert UnrollScan()(changed)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    random = np.random.default_rng(0)
    shapes = {"x": (2,), "tokens": (3, 2), "weight": (2,)}
    given = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected, found = (run(session(one), given) for one in (model, changed))
    for name in ("y", "second"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_a_graph_that_would_be_too_large_is_refused_before_it_is_made() -> None:
    model = parse(LOOP)
    with pytest.raises(
        CompileError, match=r"steps of 50000 tokens the graph would have 550000 nodes.*smaller prefill_seq_len"
    ):
        UnrollScan(50_000)(model)
    assert op_types(model) == ["Scan"]


def test_a_loop_that_runs_backwards_is_left() -> None:
    model = parse(
        """m (float[2] state, float[3, 2] x) => (float[2] y) {
            y = Scan <num_scan_inputs = 1, scan_input_directions = [1], body = step (float[2] s, float[2] t) => (float[2] n)
                { n = Sub (t, s) }> (state, x)
        }"""
    )
    assert not UnrollScan(3)(model)
