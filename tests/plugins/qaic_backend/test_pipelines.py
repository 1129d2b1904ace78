"""A pipeline whose denoiser runs on one backend and whose other components run on another."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qeff_framework import QEFFDiffusionPipeline, progress
from qeff_framework.cli.app import main
from qeff_framework.contracts import CompiledModel
from qeff_framework.errors import BackendUnavailableError, CompileError, OptionError
from qeff_framework.runtime.pipeline import CompiledDiffusionPipeline
from tests.pipelines import random_adapter, tiny_stable_diffusion
from tests.sdk_standins.qaic import StandinSdk

SIZES = {"height": 64, "width": 64}
HOST = {"text_encoder": "ort_sim", "vae": "ort_sim"}


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, as those of the documents and of tests/end_to_end: exports of its components are theirs."""
    place = tmp_path_factory.mktemp("saved") / "StableDiffusionPipeline"
    tiny_stable_diffusion().save_pretrained(place)
    return place


def test_standin_runs_the_denoiser_and_another_backend_the_rest(
    standin: Callable[..., StandinSdk], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standin()
    eager = tiny_stable_diffusion()
    model = QEFFDiffusionPipeline(eager)
    style = random_adapter({"unet": eager.unet}, seed=1, rank=2, layers=("to_q", "conv1"))
    model.load_lora_weights(style, "style")
    with pytest.raises(OptionError, match=r"has no decoder; name a backend for one of .*unet.* \(unet\)"):
        model.compile({"decoder": "ort_sim"}, **SIZES)
    with pytest.raises(OptionError, match="num_coresx"):
        model.compile({"denoiser": "qaic", **HOST}, num_coresx=8, **SIZES)
    place = tmp_path / "both"
    # Both programs take all cores: they take turns, and the denoiser is given its adapters again.
    backends = {"denoiser": "qaic", "text_encoder": "ort_sim", "vae": "qaic"}
    options = {"num_cores": 16, "max_loras": 1, **SIZES}
    compiled = model.compile(backends, compile_dir=place, **options)
    assert {name: part.backend for name, part in compiled.parts().items()} == {**HOST, "unet": "qaic", "vae": "qaic"}
    assert list(place.rglob("programqpc.bin"))
    assert main(["inspect", str(place)]) == 0
    assert re.search(r"text_encoder: ort_sim\n *unet: qaic", capsys.readouterr().out)
    # Found again, and complete in itself.
    assert model.compile(backends, compile_dir=place, **options).directory == place
    asked = {"num_inference_steps": 4, "latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    found, styled = (
        model("a lighthouse", output_type="np", adapter=name, **asked).images for name in ("base", "style")
    )
    assert isinstance(model.runner, CompiledDiffusionPipeline)
    model.runner.close()
    expected = eager("a lighthouse", output_type="np", **asked).images
    assert 0 < np.abs(found - expected).max() < 2e-3  # float16; time steps would have been wrong by 5e-3
    eager.load_lora_weights(style)
    expected_styled = eager("a lighthouse", output_type="np", **asked).images
    assert np.abs(styled - expected_styled).max() < 1e-2 < np.abs(expected_styled - expected).max()


def test_without_sdk_no_component_is_exported(no_sdk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QEFFDiffusionPipeline, "_export", lambda *_, **__: pytest.fail("it is exported"))
    # Components of the other backend would come first.
    with pytest.raises(BackendUnavailableError, match=rf"'qaic'.* cannot compile: {no_sdk}.*dry_run=True"):
        QEFFDiffusionPipeline(tiny_stable_diffusion()).compile({"denoiser": "qaic", **HOST}, num_cores=8, **SIZES)


def test_a_dry_run_is_a_bundle_for_each_program(
    no_sdk: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not no_sdk.exists()
    model = QEFFDiffusionPipeline.from_pretrained(folder)
    asked = {"dry_run": True, "num_cores": 8, "compile_config": {"vae": {"num_cores": 4}}, **SIZES}
    bundle = model.compile("qaic", **asked)
    caplog.set_level(logging.INFO, logger=progress.__name__)
    # Two artifacts are built at the same time, and the programs of one of them.
    together = model.compile("qaic", compile_dir=tmp_path / "parallel", rebuild=True, parallel=True, **asked)
    assert _contents(together) == _contents(bundle)
    of_threads = [record.getMessage() for record in caplog.records if record.threadName != "MainThread"]
    assert "unet: compiling StableDiffusionPipeline for qaic" in of_threads
    assert all(re.match("(text_encoder|unet|vae): ", message) for message in of_threads)
    cores = {name: part.options["num_cores"] for name, part in bundle.parts().items()}
    assert cores == {"text_encoder": 8, "unet": 8, "vae": 4}
    assert {file.name for file in bundle.directory.glob("qconfig*")} == {"qconfig.json", "qconfig-qaic-vae.json"}
    for program in bundle.parts().values():
        assert list(program.directory.rglob("*.onnx"))
        assert not list(program.directory.rglob("programqpc.bin"))
    (computed,) = bundle.parts()["unet"].program["host_graphs"]
    assert (bundle.parts()["unet"].directory / computed["file"]).is_file()


def _contents(compiled: CompiledModel) -> dict[str, str]:
    """Digests of the files that do not name their place or the time."""
    return {
        file.relative_to(compiled.directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in compiled.directory.rglob("*")
        if file.is_file() and file.name != "manifest.json" and not file.name.startswith("qconfig")
    }


def test_a_program_that_is_refused_stops_the_others(
    standin: Callable[..., StandinSdk], folder: Path, tmp_path: Path
) -> None:
    sdk = standin()
    compiler = next((sdk.root / "exec").iterdir())
    compiler.write_text(
        f"""#!/bin/sh
case "$PWD" in
  */unet)
    while [ ! -s {tmp_path}/pid ]; do sleep 0.01; done
    touch {tmp_path}/refused
    echo "Error: no such operator" >&2
    exit 1;;
  *) echo $$ > {tmp_path}/pid; exec sleep 600;;
esac
"""
    )
    model = QEFFDiffusionPipeline.from_pretrained(folder)
    asked = {"num_cores": 8, "parallel": True, **SIZES}
    backends = {"denoiser": "qaic", "text_encoder": "qaic", "vae": "ort_sim"}
    with pytest.raises(
        CompileError, match=r"^program 'unet': backend 'qaic' \(qeff-qaic-backend .*no such operator.* Full output: "
    ):
        model.compile(backends, compile_dir=tmp_path / "never", rebuild=True, **asked)
    assert time.time() - (tmp_path / "refused").stat().st_mtime < 300
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "never").exists()
    assert model.compiled is None
    with pytest.raises(OptionError, match="parallel='yes' must be True or False"):
        model.compile("qaic", **{**asked, "parallel": "yes"})
