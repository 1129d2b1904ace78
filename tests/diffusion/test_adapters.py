"""Adapters of pipelines that are merged, and those that are refused. Switching them is tested in `tests.end_to_end.test_pipelines`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.auto.model import QEFFAutoModel
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.errors import CheckpointError, OptionError, UnsupportedModelError
from tests.pipelines import random_adapter, tiny_stable_diffusion


@pytest.fixture(scope="module")
def eager() -> Any:
    return tiny_stable_diffusion()


def with_magnitudes(adapter: dict[str, torch.Tensor], unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapter as one of DoRA."""
    layers = [name.removeprefix("unet.").removesuffix(".lora_A.weight") for name in adapter if "lora_A" in name]
    norms = {f"unet.{name}.lora_magnitude_vector": unet.get_submodule(name).weight.norm(dim=1) * 1.1 for name in layers}  # type: ignore[operator]
    return {**adapter, **norms}


def other_size(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([value, value], 1) if "lora_A" in name else value for name, value in adapter.items()}


def test_adapters_that_cannot_be_switched_are_refused(eager: Any, tmp_path: Path) -> None:
    model = QEFFDiffusionPipeline(eager)
    flux = random_adapter({"transformer": tiny_pipeline("flux").pipeline.transformer}, seed=1, rank=2, layers=("to_q",))
    with pytest.raises(CheckpointError, match="adds nothing to .*unet.* it is for another architecture"):
        model.load_lora_weights(flux)
    fitting = random_adapter({"unet": eager.unet}, seed=1, rank=2, layers=("attn1.to_q",))
    with pytest.raises(
        CheckpointError, match=r"other sizes of this one \(size mismatch for .*to_q.*\[2, 32\].*\); load"
    ) as told:
        model.load_lora_weights(other_size(fitting))
    assert "\n" not in str(told.value)  # one layer is enough
    with pytest.raises(
        CheckpointError, match=r"the adapter is DoRA of .*attn1\.to_q, .*from_pretrained\(PIPELINE, adapter="
    ):
        model.load_lora_weights(with_magnitudes(fitting, eager.unet))
    with pytest.raises(CheckpointError, match="is no LoRA adapter that diffusers can load into"):
        model.load_lora_weights({name: each for name, each in fitting.items() if "lora_A" in name})
    with pytest.raises(CheckpointError, match="no-such-folder"):
        model.load_lora_weights(tmp_path / "no-such-folder")
    with pytest.raises(UnsupportedModelError, match="diffusers loads no LoRA adapters into PixArtSigmaPipeline"):
        QEFFDiffusionPipeline(tiny_pipeline("pixart-sigma").pipeline).load_lora_weights(fitting)
    assert model.adapters == ()


def test_a_merged_adapter_is_a_part_of_the_weights(eager: Any, tmp_path: Path) -> None:
    folder, file = tmp_path / "base", tmp_path / "ink.safetensors"
    eager.save_pretrained(folder)
    plain = QEFFDiffusionPipeline.from_pretrained(folder)
    style = with_magnitudes(random_adapter({"unet": eager.unet}, seed=1, rank=2, layers=("attn1.to_q",)), eager.unet)
    save_file(style, file)
    merged = QEFFAutoModel.from_pretrained(folder, adapter=file)
    assert isinstance(merged, QEFFDiffusionPipeline)
    assert merged.name == "base-ink.safetensors"
    assert merged.adapters == ()
    expected = tiny_stable_diffusion()
    expected.load_lora_weights(style)
    expected.fuse_lora(components=["unet"])
    expected.unload_lora_weights()
    source, before = merged._pipeline_source, plain._pipeline_source
    found, unfused = source.pipeline.unet.state_dict(), eager.unet.state_dict()
    for name, each in expected.unet.state_dict().items():
        assert torch.equal(found[name], each)
        assert torch.equal(unfused[name], each) is not name.endswith("attn1.to_q.weight")
    # The other component is referred to, and the programs are other ones.
    source.exported = "vae"
    (tmp_path / "export").mkdir()
    exported = source.load_for_export("", tmp_path / "export")
    assert all(type(each).__name__ == "DeferredTensor" for each in exported.parameters())
    source.exported = ""
    components, others = source.identity()["components"], before.identity()["components"]
    assert [name for name in components if components[name] != others[name]] == ["unet"]
    save_file(other_size(style), file)
    with pytest.raises(CheckpointError, match="other sizes of this one"):
        QEFFAutoModel.from_pretrained(folder, adapter=file)
    with pytest.raises(OptionError, match="adapter is for a folder or an id"):
        QEFFDiffusionPipeline.from_pretrained(eager, adapter=file)
    with pytest.raises(OptionError, match="gguf_file is for other models"):
        QEFFAutoModel.from_pretrained(folder, gguf_file="a.gguf")
