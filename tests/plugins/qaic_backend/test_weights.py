"""Weights of a checkpoint in the compiler's input: linked, or written in 16 bits."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.artifacts import Manifest
from qeff_framework.contracts import CompiledModel
from tests.plugins.qaic_backend.sessions import continuation, open_session
from tests.tiny_models import tiny_causal_lm

PROMPT, CHUNK, NEW = [5, 9, 2, 7, 11], 4, 4


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    """A tiny checkpoint, and the module in float32."""
    module, _ = tiny_causal_lm("llama")
    folder = tmp_path_factory.mktemp(request.param)
    module.to(getattr(torch, request.param)).save_pretrained(folder)
    return folder, module.float()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store for the tests of this file, which share the exports."""
    monkeypatch.setenv("QEFF_HOME", str(home))


def _compiled(folder: Path, tmp_path: Path, **options: object) -> CompiledModel:
    model = QEFFAutoModelForCausalLM.from_pretrained(folder)
    return model.compile(
        "qaic", compile_dir=tmp_path / "program", prefill_seq_len=CHUNK, ctx_len=24, num_cores=2, **options
    )


def _expected(module: PreTrainedModel) -> list[list[int]]:
    ids = torch.tensor([PROMPT])
    for _ in range(NEW):
        ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, len(PROMPT) :].tolist()


@pytest.mark.parametrize("hw_version", ["ai100", "ai200"])
def test_standin_weights_of_16_bits_stay_in_16_bits(hw_version, checkpoint, standin, tmp_path) -> None:
    folder, module = checkpoint
    standin(profile="1.22", devices=None if hw_version == "ai100" else hw_version)
    compiled = _compiled(folder, tmp_path, hw_version=hw_version)

    weights = compiled.directory / "model.onnx.data"
    # The tables of the rotary embedding are in float32.
    assert weights.stat().st_size < 1.1 * (folder / "model.safetensors").stat().st_size
    session = open_session(compiled)
    assert continuation(session, [PROMPT], chunk=CHUNK, new_tokens=NEW) == _expected(module)
    session.close()


def test_standin_a_dry_run_links_what_the_device_takes_and_its_script_makes_copies(
    checkpoint, standin, no_sdk, tmp_path
) -> None:
    folder, module = checkpoint
    shard = folder / "model.safetensors"
    bundle = _compiled(folder, tmp_path, hw_version="ai200", dry_run=True).directory
    assert (bundle / "model.safetensors").samefile(shard)
    assert not (bundle / "model.onnx.data").exists()
    digest = Manifest.load(bundle).files["model.safetensors"].sha256
    assert digest == hashlib.sha256(shard.read_bytes()).hexdigest()

    sdk = standin(profile="1.22", devices="ai200")
    environment = {"PATH": "/usr/bin:/bin", ROOT_VARIABLE: str(sdk.root)}
    done = subprocess.run([bundle / "compile.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (bundle / "model.safetensors").samefile(shard)
    session = open_session(CompiledModel.load(bundle))
    assert continuation(session, [PROMPT], chunk=CHUNK, new_tokens=NEW) == _expected(module)
    session.close()


def test_standin_compressed_products_find_their_weights_behind_casts(checkpoint, standin, tmp_path) -> None:
    folder, module = checkpoint
    standin(profile="1.22")
    compiled = _compiled(folder, tmp_path, mxfp6_matmul=True)

    session = open_session(compiled)
    step = {"input_ids": np.array([PROMPT[:4]]), "position_ids": np.array([[0, 1, 2, 3]])}
    logits = session.run(step)["logits"][0, 0]
    session.close()
    exact = module(torch.tensor([PROMPT[:4]])).logits[0, -1].detach().numpy()
    difference = float(np.abs(logits - exact).max() / np.abs(exact).max())
    # Six bits, and not sixteen.
    assert 2e-3 < difference < 0.3
