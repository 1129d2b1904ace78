"""Weights that stay in the blocks of their checkpoint: which ones, and the numbers that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qeff_framework.contracts import PackedMatrix
from qeff_framework.dialect.reference import quantized_experts, quantized_matrix
from qeff_framework.seam.deferred import DeferredTensor
from qeff_framework.sources.quantized import QuantizedCheckpoint, keeping
from qeff_framework.sources.quantized.gguf import weights as gguf_weights
from qeff_framework.sources.quantized.keeping import packed_matrices
from tests.gguf_files import finish
from tests.sources.quantized import packing
from tests.sources.quantized.test_formats import SAMPLES, settings_of

KEPT = {
    "awq_gemm": (4, 32),
    "awq_gemv": (4, 32),
    **{f"gptq_{bits}bit": (4 if bits < 5 else 8, 32) for bits in (2, 3, 4, 8)},
    "compressed-tensors_pack-quantized_3bit": (4, 16),
    "compressed-tensors_pack-quantized_asymmetric": (4, 32),
    "compressed-tensors_pack-quantized_channel": (8, 32),
    "compressed-tensors_pack-quantized_group": (4, 32),
}


@pytest.fixture
def no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of weights must not be looked at."""
    monkeypatch.delattr(keeping, "_digests")


def linear(weight: torch.Tensor) -> torch.nn.Module:
    """A module whose parameter "other" is `weight`."""
    module = torch.nn.Module()
    content = weight if isinstance(weight, DeferredTensor) else weight.clone()
    module.register_parameter("other", torch.nn.Parameter(content, requires_grad=False))
    module.register_parameter("bias", torch.nn.Parameter(torch.zeros(3), requires_grad=False))
    return module


def numbers(matrix: PackedMatrix) -> np.ndarray:
    """``[K, N]``."""
    assert 2 ** (matrix.block_size.bit_length() - 1) == matrix.block_size >= 16
    return quantized_matrix(*matrix.read(), bits=matrix.bits, input_size=matrix.shape[1])


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_what_is_kept_is_the_weight_that_was_loaded(path: Path) -> None:
    """Found whatever its name, the order of its rows, and whether the module holds it transposed."""
    checkpoint = QuantizedCheckpoint(settings_of(path), [path], "sample")
    weight = checkpoint.state_dict(torch.nn.Module())["proj.weight"][...]
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    for parameter, expected in ((weight[order], weight[order]), (weight.T.contiguous(), weight)):
        found = packed_matrices(checkpoint.weights(), linear(parameter))
        assert set(found) == ({"other"} if path.stem in KEPT else set())
        for matrix in found.values():
            assert (matrix.bits, matrix.block_size) == KEPT[path.stem]
            np.testing.assert_array_equal(numbers(matrix), expected.T.numpy())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_what_is_kept_of_a_deferred_weight_is_told_without_reading_it(path: Path, no_digests: None) -> None:
    checkpoint = QuantizedCheckpoint(settings_of(path), [path], "sample")
    weight: Any = checkpoint.state_dict(torch.nn.Module(), deferred=True)["proj.weight"]
    assert isinstance(weight, DeferredTensor)
    for parameter in (weight, weight.T):
        found = packed_matrices(checkpoint.weights(), linear(parameter))
        assert set(found) == ({"other"} if path.stem in KEPT else set())
        for matrix in found.values():
            assert (matrix.bits, matrix.block_size) == KEPT[path.stem]
            np.testing.assert_array_equal(numbers(matrix), weight.materialise().T.numpy())


def test_a_weight_that_was_changed_is_not_kept(tmp_path: Path) -> None:
    packed, weight = packing.awq(torch.randn(16, 32))
    save_file({f"proj.{part}": tensor.contiguous() for part, tensor in packed.items()}, tmp_path / "a.safetensors")
    checkpoint = QuantizedCheckpoint(packing.AWQ, [tmp_path / "a.safetensors"], "sample")
    assert set(packed_matrices(checkpoint.weights(), linear(weight))) == {"other"}
    weight[3, 5] += 1e-3
    assert not packed_matrices(checkpoint.weights(), linear(weight))


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_that_are_put_together(transposed: bool, tmp_path: Path) -> None:
    """Each expert's two products are one matrix of the module, which is kept where no row of any expert was changed."""
    weights, tensors = [], {}
    for number in range(6):
        packed, weight = packing.awq(torch.randn(16, 32))
        weights.append(weight)
        tensors |= {f"{number}.proj.{part}": tensor.contiguous() for part, tensor in packed.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    checkpoint = QuantizedCheckpoint(packing.AWQ, [tmp_path / "a.safetensors"], "sample")
    joined = torch.cat([torch.stack(weights[:3]), torch.stack(weights[3:])], dim=1)
    module = linear(joined.mT.contiguous() if transposed else joined)
    found = packed_matrices(checkpoint.weights(), module)["other"]
    assert found.shape == (3, 32, 32)
    matrices = quantized_experts(*found.read(), bits=found.bits, input_size=32)
    np.testing.assert_array_equal(matrices, joined.mT.numpy())
    module.get_parameter("other")[2, 5, 7] += 1e-3
    assert not packed_matrices(checkpoint.weights(), module)


@pytest.mark.parametrize("transposed", [False, True])
def test_deferred_experts_that_are_put_together(transposed: bool, tmp_path: Path, no_digests: None) -> None:
    tensors = {}
    for number in range(6):
        packed, _ = packing.awq(torch.randn(16, 32))
        tensors |= {f"{number}.proj.{part}": tensor.contiguous() for part, tensor in packed.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    checkpoint = QuantizedCheckpoint(packing.AWQ, [tmp_path / "a.safetensors"], "sample")
    states: Any = checkpoint.state_dict(torch.nn.Module(), deferred=True)
    weights = [states[f"{number}.proj.weight"] for number in range(6)]
    joined = torch.cat([torch.stack(weights[:3]), torch.stack(weights[3:])], dim=1)
    found = packed_matrices(checkpoint.weights(), linear(joined.mT if transposed else joined))["other"]
    matrices = quantized_experts(*found.read(), bits=found.bits, input_size=32)
    np.testing.assert_array_equal(matrices, joined.materialise().mT.numpy())


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_blocks_of_gguf(kind: str, tmp_path: Path) -> None:
    """The header has values of every sort in front of the tensors; their order is not that of the alphabet."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((6, 96), dtype=np.float32)
    quantised: Any = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "llama")
    writer.add_custom_alignment(64)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ä"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("yes", True)
    writer.add_uint64("large", 2**40)
    writer.add_tensor("z.weight", generator.standard_normal((3, 5), dtype=np.float32))
    writer.add_tensor("a.weight", quantised, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)
    expected = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType[kind])
    found = packed_matrices(gguf_weights(tmp_path / "a.gguf"), linear(torch.from_numpy(expected)))
    np.testing.assert_array_equal(numbers(found["other"]), expected.T)
    assert found["other"].bits == (4 if kind == "Q4_0" else 8)
