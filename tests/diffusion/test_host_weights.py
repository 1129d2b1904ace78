"""Weights that a pipeline's own code computes with, outside of calls of its components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.diffusion import recording
from qeff_framework.diffusion.components import changed_parts, structure
from qeff_framework.diffusion.folder import load_with_handler, save_without_weights
from qeff_framework.diffusion.recording import recorded
from qeff_framework.errors import InputError, UnsupportedModelError
from qeff_framework.sources.pipeline import PipelineSource
from tests.pipelines import tiny_stable_diffusion

RUN = {"prompt": "a", "height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}


def test_a_weight_that_the_pipeline_reads_is_real_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = tiny_stable_diffusion()
    prepare, seen = StableDiffusionPipeline.prepare_latents, []

    def shifted(self: Any, *args: Any) -> Any:
        seen.append(self.unet.conv_in.bias.abs() + 1)
        return prepare(self, *args) + seen[-1].sum()

    assert not recorded(eager, [RUN]).host_weights
    monkeypatch.setattr(StableDiffusionPipeline, "prepare_latents", shifted)
    read = recorded(eager, [RUN]).host_weights
    assert {name: [*weights] for name, weights in read.items()} == {"unet": ["conv_in.bias"]}
    assert torch.equal(seen[0], eager.unet.conv_in.bias.abs() + 1)

    def handler(*called: Any) -> Any:
        raise AssertionError(called)

    save_without_weights(eager, tmp_path / "with", read)
    loaded = load_with_handler(tmp_path / "with", handler)
    assert torch.equal(loaded.unet.conv_in.bias, eager.unet.conv_in.bias)
    assert loaded.unet.dtype == torch.float32  # is no reading
    with pytest.raises(InputError, match=r"computes with unet\.conv_out\.bias itself.*compile\(call="):
        loaded.unet.conv_out.bias.abs()
    # It makes another artifact.
    source = PipelineSource(eager, "tiny")
    before = source.host_identity()["host"]
    source.host_weights = read
    source.look_again()
    assert source.host_identity()["host"] != before
    monkeypatch.setattr(recording, "_MOST_ON_THE_HOST", 8)
    with pytest.raises(UnsupportedModelError, match=r"weights itself, outside of calls .*unet conv_in\.bias"):
        recorded(eager, [RUN])


def test_what_was_changed_is_named() -> None:
    vae = tiny_stable_diffusion().vae
    before = structure(vae)
    assert not changed_parts(before, structure(vae))
    vae.enable_tiling()
    vae.decoder.up_blocks[0].factors = [1, 2]
    vae.decoder.conv_in = torch.nn.Identity()
    assert changed_parts(before, structure(vae)) == "use_tiling, decoder.conv_in, decoder.up_blocks.0.factors"


def test_several_controlnets_and_lists_of_settings_come_back(tmp_path: Path) -> None:
    parts = tiny_pipeline("stable-diffusion-controlnet").pipeline.components
    nets = [parts["controlnet"], tiny_pipeline("stable-diffusion-controlnet").pipeline.controlnet]
    several = StableDiffusionControlNetPipeline(**{**parts, "controlnet": nets}, requires_safety_checker=False)
    save_without_weights(several, tmp_path / "several", {})
    loaded = load_with_handler(tmp_path / "several", lambda *called: called)
    assert [type(each).__name__ for each in loaded.controlnet.nets] == ["ControlNetModel"] * 2
    assert loaded.controlnet.nets[1].config.cross_attention_dim == nets[1].config.cross_attention_dim
    # Which layers of its encoder a pipeline reads.
    krea = tiny_pipeline("krea2").pipeline
    save_without_weights(krea, tmp_path / "krea", {})
    assert load_with_handler(tmp_path / "krea", lambda *called: called).text_encoder_select_layers == (1, 2)


def test_a_hook_is_a_change() -> None:
    encoder = tiny_stable_diffusion().text_encoder
    before = structure(encoder)
    handle = encoder.get_submodule("final_layer_norm").register_forward_hook(lambda module, given, output: given[0])
    assert changed_parts(before, structure(encoder)) == "final_layer_norm.forward hooks"
    handle.remove()
    assert changed_parts(before, structure(encoder)) == ""
