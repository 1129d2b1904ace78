"""Each hazard of the compiler: wrong or refused without its lowering, right with it. Both are computed in the simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from qeff_framework.lowering import FoldConstants, InlineDialect, RotaryTables
from qnn_backend.htp.lowering import MASKED_QUANTISED
from qnn_backend.htp.lowering.broadcast_sums import BroadcastSums
from qnn_backend.htp.lowering.composed_norms import ComposedNorms
from qnn_backend.htp.lowering.finite_masks import FiniteMasks
from qnn_backend.htp.lowering.gather_axis import GatherMiddleAxis
from qnn_backend.htp.lowering.gather_nd import GatherNDRows
from qnn_backend.htp.lowering.merged_axes import MergedAxes
from qnn_backend.htp.lowering.norm_rows import NormRows
from qnn_backend.htp.lowering.operand_order import ScaleOperandOrder
from qnn_backend.htp.lowering.padded_products import PaddedProducts
from qnn_backend.htp.lowering.residual_scaling import ScaledWeights, factor_for, normed_values, scale_residual
from qnn_backend.htp.lowering.rms_norm import FusedRMSNorm
from qnn_backend.htp.lowering.softplus import PreciseSoftplus
from qnn_backend.htp.lowering.square_transpose import SquareTransposeRows
from qnn_backend.htp.quantising import quantise
from tests.plugins.qnn_backend.htp.simulator import lowered, needs_simulator, on_cpu, parse, simulate, worst

pytestmark = needs_simulator

RNG = np.random.default_rng(0)
TOLERANCE = 0.01


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def test_a_weight_in_front_of_a_composed_norm(tmp_path: Path) -> None:
    """Hazard 1."""
    model = parse(
        """norm (float[1, 4, 64] x) => (float[1, 4, 64] y)
        <float two = {2.0}, float epsilon = {1e-6}> {
            squares = Pow (x, two) mean = ReduceMean <axes = [-1], keepdims = 1> (squares)
            shifted = Add (mean, epsilon) root = Sqrt (shifted) factor = Reciprocal (root)
            unit = Mul (x, factor) y = Mul (weight, unit)
        }""",
        {"weight": floats(64)},
        opset=17,
    )
    feeds = {"x": floats(1, 4, 64)}
    with pytest.raises(Exception, match=r"1002|finalize"):
        simulate(model, feeds, tmp_path)
    assert worst(on_cpu(model, feeds), simulate(lowered(model, ScaleOperandOrder()), feeds, tmp_path)) < TOLERANCE


@pytest.mark.parametrize("shape", [(1, 16, 2, 16), (2, 16, 32)], ids=["by heads", "two rows"])
def test_a_composed_norm_with_a_weight(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The compiler recognises it and takes its kernel; what is no such norm it computes well."""
    sizes = ", ".join(map(str, shape))
    model = parse(
        f"""norm (float[{sizes}] x) => (float[{sizes}] y, float[{sizes}] z)
        <int64[1] axis = {{-1}}, float two = {{2.0}}, float epsilon = {{1e-6}}> {{
            squares = Pow (x, two) mean = ReduceMean (squares, axis) shifted = Add (mean, epsilon) root = Sqrt (shifted)
            factor = Reciprocal (root) unit = Mul (x, factor) y = Mul (unit, weight) z = Mul (x, weight)
        }}""",
        {"weight": floats(shape[-1])},
    )
    feeds = {"x": floats(*shape)}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.5
    rewritten = lowered(model, ComposedNorms(), NormRows())
    assert worst(expected, on_cpu(rewritten, feeds)) < 1e-5
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


def test_a_product_with_a_padded_transpose(tmp_path: Path) -> None:
    """As in the linear attention of Sana, whose values get a row of ones."""
    model = parse(
        """attend (float[2, 256, 16] values, float[2, 2, 256, 8] keys) => (float[2, 2, 9, 8] y) <float one = {1.0}> {
            turned = Transpose <perm = [0, 2, 1]> (values) heads = Reshape (turned, shape)
            padded = Pad (heads, pads, one) y = MatMul (padded, keys)
        }""",
        {"shape": np.array([2, 2, 8, 256]), "pads": np.array([0, 0, 0, 0, 0, 0, 1, 0])},
    )
    feeds = {"values": floats(2, 256, 16), "keys": floats(2, 2, 256, 8)}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.5
    rewritten = lowered(model, PaddedProducts())
    np.testing.assert_allclose(on_cpu(rewritten, feeds)[0], expected[0], atol=1e-4)
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


def test_a_gather_in_the_middle(tmp_path: Path) -> None:
    """Hazard 2; with indices of 64 bits the compiler takes another way, which is right."""
    model = parse(
        "pick (float[1, 2, 64, 16] x, int32[5] rows) => (float[1, 2, 5, 16] y) { y = Gather <axis = 2> (x, rows) }"
    )
    feeds = {"x": floats(1, 2, 64, 16), "rows": np.array([3, 60, 0, 17, 3], np.int32)}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.5
    rewritten = lowered(model, GatherMiddleAxis())
    np.testing.assert_array_equal(on_cpu(rewritten, feeds)[0], expected[0])
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


def test_more_index_rows_than_rows_of_data(tmp_path: Path) -> None:
    model = parse(
        "pick (int64[16, 1] rows) => (float[16, 96, 32] y) { y = GatherND (experts, rows) }",
        {"experts": floats(4, 96, 32)},
    )
    feeds = {"rows": RNG.integers(0, 4, (16, 1))}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.5
    assert worst(expected, simulate(lowered(model, GatherNDRows()), feeds, tmp_path)) < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "indices", "batch"), [((4, 5, 8), (3, 2), 0), ((2, 4, 8), (2, 3, 1), 1), ((2, 3, 4), (2, 3, 1), 2)]
)
def test_every_form_of_gather_nd(shape: tuple[int, ...], indices: tuple[int, ...], batch: int, tmp_path: Path) -> None:
    """Depths above 1 and batch dimensions, which the compiler refuses."""
    named = shape[batch : batch + indices[-1]]
    rows = np.stack([RNG.integers(0, size, indices[:-1]) for size in named], axis=-1)
    result = [*indices[:-1], *shape[batch + indices[-1] :]]
    model = parse(
        f"pick (float{list(shape)} x, int64{list(indices)} rows) => (float{result} y) {{ y = GatherND <batch_dims = {batch}> (x, rows) }}"
    )
    feeds = {"x": floats(*shape), "rows": rows}
    expected, rewritten = on_cpu(model, feeds), lowered(model, GatherNDRows())
    np.testing.assert_array_equal(on_cpu(rewritten, feeds)[0], expected[0])
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


def test_angles_of_late_positions(tmp_path: Path) -> None:
    """Hazard 3."""
    model = parse(
        """angles (int64[1, 4] position_ids) => (float[1, 4, 8] cosine)
        <int64[1] last = {2}> {
            column = Unsqueeze (position_ids, last) position = Cast <to = 1> (column)
            angle = Mul (position, frequencies) cosine = Cos (angle)
        }""",
        {"frequencies": (10000.0 ** -np.linspace(0, 1, 8)).astype(np.float32)},
    )
    feeds = {"position_ids": np.array([[0, 33, 1500, 2047]])}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.2
    assert worst(expected, simulate(lowered(model, RotaryTables(2048)), feeds, tmp_path)) < TOLERANCE


def rms_norm() -> str:
    return """{
        y = qeff.RMSNorm <epsilon: float = 1e-6> (x, weight)
    }"""


def test_squares_beyond_the_range(tmp_path: Path) -> None:
    """Hazard 4: the norm's body in single ops against its kernel."""
    import onnx

    from qeff_framework.dialect.functions import attach_functions
    from qnn_backend.htp.lowering.opset import LaterOpset

    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "qeff": 1]> norm (float[1, 4, 64] x) => (float[1, 4, 64] y)'
        + rms_norm()
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(64), "weight"))
    model = onnx_ir.serde.deserialize_model(proto)
    attach_functions(model)
    feeds = {"x": floats(1, 4, 64, scale=2000.0)}
    expected = on_cpu(model, feeds)
    composed, fused = model.clone(), model.clone()
    for lowering in (InlineDialect(), LaterOpset(), FoldConstants()):
        lowering(composed)
    assert worst(expected, simulate(composed, feeds, tmp_path)) > 0.2
    for lowering in (FusedRMSNorm(), InlineDialect(), LaterOpset(), FoldConstants()):
        lowering(fused)
    assert [node.op_type for node in fused.graph] == ["RMSNormalization"]
    assert worst(expected, simulate(fused, feeds, tmp_path)) < TOLERANCE


def test_equal_sizes_in_front_of_a_transposition(tmp_path: Path) -> None:
    model = parse(
        """project (float[4, 4, 4, 8] x) => (float[4, 4, 32] y)
        <int64[3] shape = {4, 4, 32}> {
            tokens_first = Transpose <perm = [0, 2, 1, 3]> (x) rows = Reshape (tokens_first, shape) y = MatMul (rows, weight)
        }""",
        {"weight": floats(32, 32)},
    )
    feeds = {"x": floats(4, 4, 4, 8)}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.5
    assert worst(expected, simulate(lowered(model, SquareTransposeRows()), feeds, tmp_path)) < TOLERANCE


def test_a_permutation_of_more_axes_than_the_npu_has(tmp_path: Path) -> None:
    model = parse(
        """unpatchify (float[1, 12, 16] x) => (float[1, 4, 2, 4, 6] y)
        <int64[8] split = {1, 2, 2, 3, 1, 2, 2, 4}, int64[5] joined = {1, 4, 2, 4, 6}> {
            patches = Reshape (x, split) turned = Transpose <perm = [0, 7, 1, 4, 2, 5, 3, 6]> (patches)
            y = Reshape (turned, joined)
        }"""
    )
    feeds = {"x": floats(1, 12, 16)}
    expected = on_cpu(model, feeds)
    with pytest.raises(Exception, match="Reshape|Transpose|NPU|1002|finalize|fallback"):
        simulate(model, feeds, tmp_path)
    rewritten = lowered(model, MergedAxes())
    assert [node.op_type for node in rewritten.graph] == ["Reshape", "Transpose", "Reshape"]
    assert worst(expected, on_cpu(rewritten, feeds)) == 0
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


def test_the_logarithm_of_a_softplus(tmp_path: Path) -> None:
    """Relative errors: step sizes of state-space layers are small numbers."""
    model = parse("steps (float[1, 145] x) => (float[1, 145] y) { y = Softplus (x) }")
    feeds = {"x": np.linspace(-7, 11, 145, dtype=np.float32)[None]}
    [expected] = on_cpu(model, feeds)
    errors = [
        np.abs(simulate(one, feeds, tmp_path)[0] / expected - 1).max()
        for one in (model, lowered(model, PreciseSoftplus()))
    ]
    assert errors[0] > 0.05
    assert errors[1] < 0.002


@pytest.mark.parametrize("shape", [(2, 16, 32), (1, 16, 4, 32)])
def test_a_root_mean_square_over_more_than_rows(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = parse(
        f"norm (float{list(shape)} x) => (float{list(shape)} y) {{ y = RMSNormalization <axis = -1, epsilon = 1e-6> (x, weight) }}",
        {"weight": floats(32)},
    )
    feeds = {"x": floats(*shape)}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.3
    rewritten = lowered(model, NormRows())
    np.testing.assert_allclose(on_cpu(rewritten, feeds)[0], expected[0], rtol=1e-5, atol=1e-6)
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


@pytest.mark.parametrize("table", ["weight", "computed"])
def test_a_broadcast_sum_in_front_of_a_norm(table: str, tmp_path: Path) -> None:
    """A table of positions that all rows of a batch share; the sum itself is read too."""
    positions, is_weight = floats(1, 16, 32), table == "weight"
    model = parse(
        f"""embed (float[3, 16, 32] x{"" if is_weight else ", float[1, 16, 32] positions"}) => (float[3, 16, 32] y)
        <int64[2] rows = {{48, 32}}, int64[3] back = {{3, 16, 32}}> {{
            sum = Add (positions, x) flat = Reshape (sum, rows)
            normed = LayerNormalization <axis = -1, epsilon = 1e-6> (flat, scale) batch = Reshape (normed, back) y = Add (batch, sum)
        }}""",
        {"scale": floats(32), **({"positions": positions} if is_weight else {})},
    )
    feeds = {"x": floats(3, 16, 32), **({} if is_weight else {"positions": positions})}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.2
    rewritten = lowered(model, BroadcastSums())
    np.testing.assert_array_equal(on_cpu(rewritten, feeds)[0], expected[0])
    assert worst(expected, simulate(rewritten, feeds, tmp_path)) < TOLERANCE


STREAM = """block (int64[1, 4] ids) => (float[1, 4, 32] y)
    <float scale = {32.0}> {
        embedded = Gather (table, ids) hidden = Mul (embedded, scale)
        first = RMSNormalization <axis = -1, epsilon = 1e-6> (hidden, weight)
        up = MatMul (first, large) biased = Add (up, bias) moved = Sub (biased, offset) sum = Add (hidden, moved)
        second = LayerNormalization <axis = -1, epsilon = 1e-6> (sum, weight)
        other = Tanh (up) y = Add (second, other)
    }"""


def test_a_residual_stream_beyond_the_range(tmp_path: Path) -> None:
    """Hazard 6: readers that are no norms get the value as it was, shared weights are not changed for others."""
    model = parse(
        STREAM,
        {
            "table": floats(16, 32),
            "weight": floats(32),
            "large": floats(32, 32, scale=30000.0),
            "bias": floats(32, scale=1e5),
            "offset": floats(4, 32, scale=1e5),
        },
    )
    feeds = {"ids": np.array([[3, 9, 0, 15]])}
    expected = on_cpu(model, feeds)
    assert worst(expected, simulate(model, feeds, tmp_path)) > 0.05
    scaled = model.clone()
    assert normed_values(scaled) == {"hidden", "sum"}
    assert scale_residual(scaled, {"sum"}, factor_for(400_000.0), ScaledWeights())
    np.testing.assert_allclose(on_cpu(scaled, feeds)[0], expected[0], rtol=1e-4, atol=1e-4)
    assert worst(expected, simulate(scaled, feeds, tmp_path)) < TOLERANCE


def test_the_least_factor_that_is_enough() -> None:
    assert [factor_for(size) for size in (0.0, 8192.0, 8193.0, 103_795.0)] == [1, 1, 2, 16]


def quantised(model: onnx_ir.Model, folder: Path) -> onnx_ir.Model:
    """The graph ``x [1, 4, 16] -> y`` with 16-bit activations, as ``precision="a16w8"`` makes it."""
    spec = {"dtype": "float32", "shape": [1, 4, 16]}
    interface = {
        "inputs": [{"name": "x", **spec}],
        "outputs": [{"name": "y", **spec}],
        "states": [],
        "specializations": [{"name": "masked", "dims": {"batch_size": 1, "seq_len": 4}}],
    }
    path = str(folder / "masked.onnx")
    onnx_ir.save(model, path)
    return onnx_ir.load(quantise(path, {"masked": path}, interface, [[1]] * 8, str(folder), [])["graphs"]["masked"])


@pytest.mark.parametrize("lowest", [-3.4028234663852886e38, -65504.0])
def test_a_mask_takes_the_range_of_a_quantised_tensor(lowest: float, tmp_path: Path) -> None:
    """Hazard 5: the step between two numbers of a tensor that holds the mask's is larger than all scores."""
    model = parse(
        "mask (float[1, 4, 16] x) => (float[1, 4, 16] y) { scores = Add (x, bias) y = Softmax <axis = -1> (scores) }",
        {"bias": np.where(np.tri(4, 16, 8), 0.0, lowest).astype(np.float32)},
    )
    # Inside the range of the calibration, which has normally distributed numbers.
    feeds = {"x": np.clip(floats(1, 4, 16), -1.5, 1.5)}
    expected = on_cpu(model, feeds)
    (tmp_path / "without").mkdir()
    assert worst(expected, simulate(quantised(model, tmp_path / "without"), feeds, tmp_path)) > 0.2
    finite = lowered(model, FiniteMasks(MASKED_QUANTISED))
    np.testing.assert_allclose(on_cpu(finite, feeds)[0], expected[0], atol=1e-6)
    assert worst(expected, simulate(quantised(finite, tmp_path), feeds, tmp_path)) < TOLERANCE


def test_masks_are_finite() -> None:
    model = parse(
        "mask (float[1, 4] x) => (float[1, 4] y) { y = Add (x, bias) }",
        {"bias": np.array([[0.0, -np.inf, -3.4e38, -9000.0]], np.float32)},
    )
    [output] = on_cpu(lowered(model, FiniteMasks(-50.0)), {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_allclose(output, [[1.0, -49.0, -49.0, -8999.0]])
