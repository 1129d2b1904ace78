"""Which components of a folder are read, and which calls of them are found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.diffusion.components import without_weights
from qeff_framework.diffusion.recording import recorded
from qeff_framework.errors import InputError
from qeff_framework.sources.pipeline_files import StoredComponent


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
    # A component in memory is exported without reading the others.
    monkeypatch.setattr(StoredComponent, "load", lambda each: pytest.fail(f"{each.folder} is read"))
    source.exported = "text_encoder"
    found = source.load_for_export("", tmp_path)
    assert [name for name, _ in found.named_children()] == ["text_encoder"]


def test_a_package_that_a_pipeline_stumbles_over_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Wan's image-to-video pipeline without it, whose import is left out then.
    pipeline = tiny_pipeline("stable-diffusion").pipeline
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ftfy" else find(name, *more))
    for failure in (NameError("name 'ftfy' is not defined", name="ftfy"), ModuleNotFoundError("no ftfy", name="ftfy")):
        monkeypatch.setattr(type(pipeline), "__call__", Mock(side_effect=failure))
        with pytest.raises(
            InputError, match="StableDiffusionPipeline needs ftfy, which is not installed: pip install ftfy"
        ):
            recorded(pipeline, [{}])


def test_a_component_without_weights_draws_no_numbers_of_the_callers() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(2, 3))

    before = torch.manual_seed(1).get_state()
    assert without_weights(Net, {}).table.shape == (2, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
