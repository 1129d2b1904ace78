"""The backend through the framework's public interface, on the stand-in SDK."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from qeff_framework import QEFFAutoModel, QEFFAutoModelForCausalLM, load_compiled
from qeff_framework.errors import BackendUnavailableError, ExecutionError, OptionError
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

pytestmark = pytest.mark.usefixtures("session_store")

PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90], [11, 29, 47, 83, 101, 6]]
SIZES = {"prefill_seq_len": 4, "ctx_len": 32, "batch_size": 3, "num_cores": 2}


def test_standin_compile_and_generate_equal_eager(standin, tmp_path: Path) -> None:
    sdk = standin(profile="1.22")
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    compiled = model.compile(backend="qaic", compile_dir=tmp_path / "here", **SIZES)
    output = model.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, prompt, 8) for prompt in PROMPTS]
    # A second call starts a new generation in the same session.
    again = model.generate(prompts=PROMPTS[1:2], generation_len=8, ignore_eos=True)
    assert again.generated_ids == output.generated_ids[1:2]
    model.load().close()

    versions = json.loads((compiled.directory / "qconfig.json").read_text())["qpc_config"]["aic_sdk_config"]
    assert versions["qaic_apps_version"] == versions["qaic_platform_version"] == sdk.profile.version

    model.compile(backend="qaic", compile_dir=tmp_path / "here", **SIZES)
    assert len(sdk.invocations("qaic-compile")) == 1, "the program that exists is found"
    (tmp_path / "here").rename(tmp_path / "there")
    with load_compiled(tmp_path / "there") as moved:
        assert moved.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True).generated_ids == output.generated_ids


def test_standin_encoder_with_two_lengths(standin) -> None:
    standin()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.4,
    )
    module = BertModel(config).eval()
    model = QEFFAutoModel(module, pooling="mean")
    model.compile(backend="qaic", batch_size=2, seq_len=[8, 16], num_cores=2)
    ids = np.array([[5, 9, 33, 71, 2, 0, 0, 0], [8, 7, 6, 5, 4, 3, 2, 1]])
    mask = (np.arange(8) < np.array([[5], [8]])).astype(np.int64)
    ours = model.generate({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        hidden = module(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    theirs = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-2)
    model.load().close()


def test_without_sdk_a_dry_run_works_and_the_rest_says_what_to_do(no_sdk, tmp_path) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    with pytest.raises(OptionError, match="did you mean 'num_cores'"):
        model.compile(backend="qaic", num_coers=14)
    with pytest.raises(BackendUnavailableError, match="dry_run=True"):
        model.compile(backend="qaic", **SIZES)
    bundle = model.compile(backend="qaic", dry_run=True, compile_dir=tmp_path / "bundle", **SIZES)
    assert {"compile.sh", "model.onnx", "specializations.json", "custom_io.yaml"} <= {
        path.name for path in bundle.directory.iterdir()
    }
    with pytest.raises(ExecutionError, match="dry_run"):
        model.generate(prompts=PROMPTS, generation_len=2)
