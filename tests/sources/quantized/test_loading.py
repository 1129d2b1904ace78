"""Whole checkpoints with packed weights: loaded as the model that Transformers loads from the dequantised weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qeff_framework.dialect.reference import quantized_experts
from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.seam.deferred import DeferredTensor, pieces
from qeff_framework.sources import CheckpointSource
from tests.sources.conftest import change_json
from tests.sources.quantized import packing
from tests.tiny_models import tiny_causal_lm

#: The ends of the names of the weights that are packed.
PACKED = ("proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")


def pack(folder: Path, settings: dict[str, Any], packer: Callable[[torch.Tensor], packing.Packed]) -> Path:
    """Packs the projections of a checkpoint in place. Returns a copy of it with the weights that they stand for."""
    twin = Path(shutil.copytree(folder, folder.parent / "dequantised"))
    weights = load_file(folder / "model.safetensors")
    wanted = dict(weights)
    for key in [key for key in weights if key.endswith(PACKED)]:
        # GPT-2 keeps them as [in, out]; the quantisers do not.
        turned = "c_proj" in key
        packed, expected = packer(weights.pop(key).T if turned else weights.pop(key))
        wanted[key] = (expected.T if turned else expected).contiguous()
        weights |= {f"{key.removesuffix('.weight')}.{part}": tensor.contiguous() for part, tensor in packed.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_file(wanted, twin / "model.safetensors", {"format": "pt"})
    change_json(folder / "config.json", quantization_config=settings)
    return twin


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", ["awq", "gptq", "w4a16", "float8"])
def test_the_module_is_the_dequantised_one(kind: str, model_type: str, tmp_path: Path, store_root: Path) -> None:
    """Also where weights lie transposed, and where the loader puts experts together."""
    folder = tmp_path / "tiny"
    module, _ = tiny_causal_lm(model_type, num_hidden_layers=1)
    module.generation_config.update(do_sample=True, temperature=0.25)
    module.save_pretrained(folder)
    twin = pack(folder, getattr(packing, kind.upper()), getattr(packing, kind))

    source = CheckpointSource(folder, {})
    loaded: Any = source.load("AutoModelForCausalLM")
    expected = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)
    assert source.unloaded() == frozenset()
    assert source.notes() == ()
    torch.testing.assert_close(dict(loaded.state_dict()), dict(expected.state_dict()), rtol=1e-6, atol=1e-6)
    (tmp_path / "export").mkdir()
    deferred: Any = CheckpointSource(folder, {}).load_for_export("AutoModelForCausalLM", tmp_path / "export")
    for name, parameter in deferred.named_parameters():
        assert isinstance(parameter, DeferredTensor)
        assert torch.equal(parameter.materialise(), loaded.get_parameter(name)), name
    assert not list((tmp_path / "export").iterdir())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.generation_config.to_dict() == expected.generation_config.to_dict()
    (tmp_path / "companions").mkdir()
    source.save_companions(tmp_path / "companions")
    assert "quantization_config" not in json.loads((tmp_path / "companions/config.json").read_text())


#: How a checkpoint says by what it is quantised, where not by its ``quantization_config``.
STATED_ELSEWHERE: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "AutoGPTQ": ("gptq", "quantize_config.json", {"bits": 4, "group_size": 16, "desc_act": False, "sym": True}),
    "AutoAWQ": ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": 16, "zero_point": True, "version": "GEMM"}),
    "older compressed-tensors": ("w4a16", None, packing.W4A16),
}


@pytest.mark.parametrize("quantiser", STATED_ELSEWHERE)
def test_what_is_stated_elsewhere(quantiser: str, tmp_path: Path, store_root: Path) -> None:
    kind, file, content = STATED_ELSEWHERE[quantiser]
    folder = tmp_path / "tiny"
    tiny_causal_lm("llama", num_hidden_layers=1)[0].save_pretrained(folder)
    plain = load_file(folder / "model.safetensors")
    twin = pack(folder, content, getattr(packing, kind))
    config = json.loads((folder / "config.json").read_text())
    stated = config.pop("quantization_config")
    if file is None:
        config["compression_config"] = stated
    else:
        (folder / file).write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps(config))
    loaded = CheckpointSource(folder, {}).load("AutoModelForCausalLM").state_dict()
    expected = load_file(twin / "model.safetensors")
    assert all(torch.allclose(loaded[key], value, rtol=1e-6) for key, value in expected.items())
    if file is not None:
        # Beside weights that are not packed it means nothing.
        save_file(plain, folder / "model.safetensors", {"format": "pt"})
        loaded = CheckpointSource(folder, {}).load("AutoModelForCausalLM").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in plain.items())


def test_a_quantisation_that_is_asked_for(checkpoint: Path) -> None:
    """Weights are not quantised here, and Transformers would ask for the quantiser's package and a GPU."""
    given = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(
        OptionError,
        match="asks for bitsandbytes, and tiny is not quantised; leave it out.*choose the precision of a program",
    ):
        CheckpointSource(checkpoint, {"quantization_config": given})
    with pytest.raises(OptionError, match="load_in_8bit= cannot be given: the graph is float32"):
        CheckpointSource(checkpoint, {"load_in_8bit": True})
    pack(checkpoint, packing.AWQ, packing.awq)
    with pytest.raises(OptionError, match="asks for bitsandbytes, and tiny is quantised by awq"):
        CheckpointSource(checkpoint, {"quantization_config": given})
    CheckpointSource(checkpoint, {"quantization_config": packing.AWQ}).load("AutoModelForCausalLM")


def test_a_weight_that_is_not_there_is_told(checkpoint: Path) -> None:
    pack(checkpoint, packing.AWQ, packing.awq)
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.scales"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tiny lacks model\.layers\.0\.mlp\.up_proj\.scales, which .* need"):
        CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM")


def test_a_method_that_is_not_read_is_named_with_those_that_are(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", quantization_config={"quant_method": "vptq", "config_for_layers": {}})
    with pytest.raises(CheckpointError, match="states quant_method 'vptq', .*read here: awq, .*gptq.*GGUF"):
        CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM")


def test_a_checkpoint_on_the_hub_in_shards(saved: Path, tmp_path: Path, store_root: Path) -> None:
    """Files of the hub are fetched one by one; here they lie in its cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--org--tiny" / "snapshots" / commit
    shutil.copytree(saved, folder)
    twin = pack(folder, packing.W4A16, packing.w4a16)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: weights[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text(commit)
    source = CheckpointSource("org/tiny", {"cache_dir": str(tmp_path), "local_files_only": True})
    loaded = source.load("AutoModelForCausalLM").state_dict()
    expected = load_file(twin / "model.safetensors")
    assert all(torch.allclose(loaded[key], value, rtol=1e-6) for key, value in expected.items())


def test_weights_that_torch_has_written(checkpoint: Path) -> None:
    twin = pack(checkpoint, packing.FLOAT8, packing.float8)
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    module: Any = CheckpointSource(checkpoint, {}).load_for_export("AutoModelForCausalLM", checkpoint)
    loaded = dict(module.named_parameters(remove_duplicate=False))
    expected = load_file(twin / "model.safetensors")
    assert all(torch.allclose(loaded[key].materialise(), value, rtol=1e-6) for key, value in expected.items())


def test_experts_in_mxfp4(tmp_path: Path, store_root: Path) -> None:
    """The form of GPT-OSS: two numbers in a byte, and an exponent for 32 of them; kept as levels of 8 bits."""
    module, _ = tiny_causal_lm("gpt_oss", num_hidden_layers=1, intermediate_size=32)
    module.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    generator = torch.Generator().manual_seed(0)
    wanted = {}
    for key in [key for key in weights if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = weights.pop(key).shape
        codes = torch.randint(16, (experts, outputs, inputs // 32, 32), generator=generator)
        exponents = torch.randint(120, 128, (experts, outputs, inputs // 32), generator=generator)
        weights[f"{key}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        weights[f"{key}_scales"] = exponents.to(torch.uint8)
        wanted[key] = (values[codes] * 2.0 ** (exponents - 127).unsqueeze(-1)).flatten(2).mT
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    change_json(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4"})
    source = CheckpointSource(tmp_path, {"keep_quantized": True})
    module = source.load("AutoModelForCausalLM")
    loaded = module.state_dict()
    assert len(wanted) == 2
    assert all(torch.equal(loaded[key], value) for key, value in wanted.items())
    kept = source.packed_matrices(module)
    assert set(kept) == set(wanted)
    for key, matrix in kept.items():
        levels = quantized_experts(*matrix.read(), bits=8, input_size=matrix.shape[2])
        assert torch.equal(torch.from_numpy(levels), wanted[key])
    (tmp_path / "export").mkdir()
    deferred: Any = CheckpointSource(tmp_path, {}).load_for_export("AutoModelForCausalLM", tmp_path / "export")
    for key, value in wanted.items():
        parameter = deferred.get_parameter(key)
        assert torch.equal(torch.cat([*pieces(parameter, value[0].nbytes)]), value)
