"""Folders of pipelines: which components are read, and which are referred to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline


def test_a_component_that_the_pipeline_completes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The files of Z-Image's ControlNet lack the parts that it shares with the transformer: a reference to them is not all of it.
    eager = tiny_pipeline("z-image-controlnet").pipeline
    with monkeypatch.context() as patch:
        for name in ("t_embedder", "all_x_embedder", "cap_embedder", "noise_refiner", "context_refiner", "x_pad_token"):
            patch.setattr(eager.controlnet, name, None)
        patch.setattr(eager.controlnet, "rope_embedder", None)
        patch.setattr(eager.controlnet, "cap_pad_token", None)
        eager.save_pretrained(tmp_path)
    with safe_open(tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        stored = {*file.keys()}
    source = QEFFDiffusionPipeline.from_pretrained(tmp_path)._pipeline_source
    exported = {}
    for name in ("controlnet", "transformer"):
        source.exported = name
        (tmp_path / name / "export").mkdir()
        exported[name] = dict(
            source.load_for_export("", tmp_path / name / "export").get_submodule(name).named_parameters()
        )
    assert {name for name in exported["controlnet"] if name not in stored}
    for name, parameter in eager.controlnet.named_parameters():
        assert torch.equal(exported["controlnet"][name].clone(), parameter)
    assert all(type(each).__name__ == "DeferredTensor" for each in exported["transformer"].values())
