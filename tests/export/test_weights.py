"""Weights are written as they are, once, and without a second copy in memory."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

from qeff_framework.export import weights
from qeff_framework.export.page_release import MappedFiles
from qeff_framework.export.portable import export_portable
from tests.portable_loop import greedy
from tests.tiny_models import tiny_causal_lm

PROMPTS = [[3, 17, 42, 9, 88]]


def written(tensor: torch.Tensor, *, transposed: bool = False) -> bytes:
    wrapped = weights.ModuleTensor(tensor, dtype=onnx_ir.DataType.FLOAT, name="w", mapped_files=MappedFiles())
    file = io.BytesIO()
    (wrapped.transposed() if transposed else wrapped).tofile(file)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (5,), (7, 3), (2, 3, 4), (0, 4)])
def test_bytes_are_the_same_in_pieces(dtype, shape, monkeypatch):
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 16)
    tensor = torch.randn(shape).to(dtype)

    assert written(tensor) == tensor.float().numpy().astype("<f4").tobytes()


def test_a_transposed_weight_is_written_row_by_row(monkeypatch):
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 16)
    tensor = torch.randn(6, 5)

    assert written(tensor, transposed=True) == tensor.numpy().T.astype("<f4").tobytes()


def test_linear_weights_are_stored_as_they_are_multiplied(llama, llama_export):
    model = onnx_ir.load(llama_export.model_path)
    stored = model.graph.initializers["model.layers.0.mlp.down_proj.weight"]

    assert [node.op_type for node, _ in stored.uses()] == ["MatMul"]
    np.testing.assert_array_equal(
        stored.const_value.numpy(), llama.model.layers[0].mlp.down_proj.weight.detach().numpy().T
    )


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_experts_are_one_op_over_weights_as_they_are_multiplied(model_type, tmp_path):
    module, config = tiny_causal_lm(model_type)

    model = onnx_ir.load(export_portable(module, task="causal-lm", output_dir=tmp_path).model_path)

    mixtures = [node for node in model.graph if node.op_type in ("MoE", "MoEBias")]
    assert len(mixtures) == config.num_hidden_layers
    experts, inner = config.num_local_experts, config.intermediate_size
    for node in mixtures:
        up, down = node.inputs[3:5]
        assert up.const_value.shape == (experts, config.hidden_size, 2 * inner)
        assert down.const_value.shape == (experts, inner, config.hidden_size)
    original = dict(module.named_parameters())[up.name].detach().numpy()
    transposed = original if model_type == "gpt_oss" else original.swapaxes(1, 2)
    np.testing.assert_array_equal(up.const_value.numpy(), transposed)


def test_tied_weights_are_stored_once(tmp_path):
    model, config = tiny_causal_lm("gpt2")

    export_portable(model, task="causal-lm", output_dir=tmp_path)

    parameters = sum(parameter.numel() for parameter in model.parameters()) * 4
    stored = (tmp_path / "model.onnx.data").stat().st_size
    table = config.vocab_size * config.n_embd * 4
    assert stored < parameters + table, f"{stored} bytes for {parameters} bytes of weights"


def test_half_precision_models_are_exported_in_float32(tmp_path):
    model, _ = tiny_causal_lm("llama")
    rounded = model.to(torch.bfloat16)
    wide = tiny_causal_lm("llama")[0]
    wide.load_state_dict(rounded.state_dict())

    first = export_portable(rounded, task="causal-lm", output_dir=tmp_path / "bfloat16")
    second = export_portable(wide, task="causal-lm", output_dir=tmp_path / "float32")

    assert first.inputs == second.inputs
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    arguments = {"new_tokens": 6, "chunk": 4, "ctx_len": 16}
    assert greedy(first, PROMPTS, **arguments) == greedy(second, PROMPTS, **arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")
def test_released_pages_of_a_mapped_file_keep_their_content(tmp_path):
    path = tmp_path / "weights"
    content = torch.arange(2**20, dtype=torch.float32)
    content.numpy().tofile(path)
    mapped = torch.from_file(str(path), size=2**20)
    anonymous = content.clone()
    assert float(mapped.sum()) == float(content.sum())
    resident = resident_kib(path)

    files = MappedFiles()
    files.release(mapped)
    files.release(anonymous)

    assert resident > 3000
    assert resident_kib(path) < resident / 2
    assert torch.equal(mapped, content)
    assert torch.equal(anonymous, content)


def resident_kib(path: Path) -> int:
    """How much of the mapping of `path` is in memory."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(entry.split()[1]) for entry in lines if entry.startswith("Rss:"))
    raise AssertionError(f"{path} is not mapped")
