"""Blocks become the numbers that llama.cpp's own package makes of them: in NumPy, and in the functions of a graph."""

from __future__ import annotations

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qeff_framework.dialect.names import ONNX_OPSET
from qeff_framework.gguf_blocks import DOMAIN, FORMATS, BlockFormat


@pytest.mark.parametrize("number", FORMATS, ids=[found.name for found in FORMATS.values()])
def test_blocks_are_the_numbers_of_the_package_bit_for_bit(number: int) -> None:
    """Bytes at random, so that scales are subnormal, negative, infinite and no numbers as well."""
    found, kind = FORMATS[number], gguf.GGMLQuantizationType(number)
    assert (found.name, found.numbers, found.width) == (kind.name, *gguf.GGML_QUANT_SIZES[kind])
    stored = np.random.default_rng(number).integers(0, 256, (3, 700, 2 * found.width), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(stored, kind)
        numbers = found.dequantise(stored)
        # More blocks than are computed at a time.
        assert _bits(found.dequantise(np.tile(stored, (1, 1, 16)))) == _bits(np.tile(wanted, (1, 1, 16)))
    assert numbers.shape == found.shape_of(stored.shape) == wanted.shape
    assert _bits(numbers) == _bits(wanted)
    in_graph = _session(found).run(None, {"stored": stored})[0]
    is_finite = np.isfinite(wanted)
    assert is_finite.mean() > 0.9
    assert in_graph[is_finite].tobytes() == wanted[is_finite].tobytes()
    assert not np.isfinite(in_graph[~is_finite]).any()


def _bits(numbers: np.ndarray) -> bytes:
    """Which of the bit patterns for NaN an operation gives is up to the processor."""
    return np.where(np.isnan(numbers), np.float32(np.nan), numbers).tobytes()


def _session(found: BlockFormat) -> ort.InferenceSession:
    header = f'<opset_import: ["" : {ONNX_OPSET}], domain: "{DOMAIN}">'
    function = onnx.parser.parse_function(header + found.function_text)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(found.op_type, ["stored"], ["numbers"], domain=DOMAIN)],
            "one_op",
            [helper.make_tensor_value_info("stored", TensorProto.UINT8, ["a", "b", "c"])],
            [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["a", "b", "d"])],
        ),
        functions=[function],
        opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
