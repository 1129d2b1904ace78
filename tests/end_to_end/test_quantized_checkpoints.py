"""A quantised checkpoint through `ort_sim`: the tokens of the dequantised model, with dequantised weights and with packed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework import QEFFAutoModel
from qeff_framework.cli import main
from qeff_framework.errors import CheckpointError, OptionError
from tests.checkpoints import save_tiny_checkpoint
from tests.eager import eager_greedy
from tests.sdk_standins.qaic import install_standin
from tests.sources.quantized import packing
from tests.sources.quantized.test_loading import pack
from tests.tiny_models import tiny_causal_lm

PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88], [71, 3, 90]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A checkpoint with packed products of attention and packed experts, which it holds one by one; its tokens when dequantised."""
    module = tiny_causal_lm("mixtral", num_hidden_layers=1, eos_token_id=None)[0]
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("packed") / "tiny", module=module)
    twin = pack(folder, packing.AWQ, packing.awq)
    reference = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32).eval()
    expected = [eager_greedy(reference, prompt, 8) for prompt in PROMPTS]
    assert expected != [eager_greedy(module, prompt, 8) for prompt in PROMPTS]
    return folder, expected


def test_same_tokens_as_the_dequantised_model(
    packed: tuple[Path, list[list[int]]], session_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, expected = packed
    bytes_of_weights = {}
    for kept in (False, True):
        model = QEFFAutoModel.from_pretrained(folder, keep_quantized=kept)
        compiled = model.compile(backend="ort_sim", prefill_seq_len=4, ctx_len=32, batch_size=2, num_cores=2)
        assert model.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True).generated_ids == expected
        bytes_of_weights[kept] = (compiled.directory / "model.onnx.data").stat().st_size
        assert main(["inspect", str(compiled.directory), "--json"]) == 0
        packed = json.loads(capsys.readouterr().out)["packed_weights"]
        assert len(packed) == (6 if kept else 0)
    assert bytes_of_weights[True] < bytes_of_weights[False] * 0.75
    assert main(["inspect", str(compiled.directory)]) == 0
    told = capsys.readouterr().out
    assert "1 x model.layers.*.self_attn.q_proj.weight in blocks of 16 with 4 bits\n" in told
    assert "1 x model.layers.*.mlp.experts.down_proj in blocks of 16 with 4 bits, 4 experts" in told


def test_standin_of_qaic_gives_the_same_tokens_for_packed_weights(
    packed: tuple[Path, list[list[int]]], session_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose compiler takes no packed weights: the backend writes them as numbers."""
    folder, expected = packed
    sdk = install_standin(tmp_path / "sdk")
    monkeypatch.setenv(ROOT_VARIABLE, str(sdk.root))
    with sdk.clean_imports():
        model = QEFFAutoModel.from_pretrained(folder, keep_quantized=True)
        model.compile(backend="qaic", prefill_seq_len=4, ctx_len=32, batch_size=2, num_cores=2)
        with model.load() as program:
            assert program.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True).generated_ids == expected
    sdk.assert_released()


def test_what_cannot_be_kept_is_refused(tmp_path: Path, session_store: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "tiny", module=tiny_causal_lm("llama", num_hidden_layers=1)[0])
    with pytest.raises(
        CheckpointError, match="keep_quantized=True cannot be done: tiny holds no matrix .*; leave it out"
    ):
        QEFFAutoModel.from_pretrained(folder, keep_quantized=True).export()
    with pytest.raises(OptionError, match="keep_quantized='yes' cannot be given: it is True or False"):
        QEFFAutoModel.from_pretrained(folder, keep_quantized="yes")
