"""The backend against Transformers, on tiny models with random weights."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import openvino
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from qeff_framework import (
    QEFFAutoModelForCausalLM,
    QEFFAutoModelForFeatureExtraction,
    QEFFError,
    load_compiled,
)
from qeff_framework.plugin_api import OptionError

PROMPTS = [[5, 17, 9, 23, 42, 7], [11, 3]]
TOKENS = 6
SIZES = {"prefill_seq_len": 4, "ctx_len": 16}


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def expected(module):
    texts = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        for _ in range(TOKENS):
            tokens = torch.cat([tokens, module(tokens).logits[:, -1:].argmax(-1)], dim=1)
        texts.append(tokens[0, len(prompt) :].tolist())
    return texts


@pytest.fixture(scope="module")
def model(module):
    model = QEFFAutoModelForCausalLM(module)
    model.compile(backend="openvino", batch_size=2, **SIZES)
    return model


def test_tokens_are_those_of_transformers(model, expected):
    for _ in range(2):  # the second time with states that the first one has left
        output = model.generate(prompts=PROMPTS, generation_len=TOKENS, ignore_eos=True)
        assert output.generated_ids == expected


def test_logits_are_those_of_transformers(model, module):
    with load_compiled(model.compiled.directory, num_threads=1) as runner:
        session = runner.session
        prompts = np.full((2, 4), 0), np.full((2, 4), -1)
        for row, prompt in enumerate([[5, 17, 9, 23], [11, 3]]):
            prompts[0][row, : len(prompt)] = prompt
            prompts[1][row, : len(prompt)] = range(len(prompt))
        logits = session.run({"input_ids": prompts[0], "position_ids": prompts[1]})["logits"]
        assert session.info["threads"] == "1"
    for row, prompt in enumerate([[5, 17, 9, 23], [11, 3]]):
        wanted = module(torch.tensor([prompt])).logits[0, -1].detach().numpy()
        np.testing.assert_allclose(logits[row, 0], wanted, rtol=1e-4, atol=1e-4)


def test_continuous_batching(module, expected):
    model = QEFFAutoModelForCausalLM(module)
    model.compile(backend="openvino", full_batch_size=2, **SIZES)
    output = model.generate(prompts=[*PROMPTS, PROMPTS[0]], generation_len=TOKENS, ignore_eos=True)
    assert output.generated_ids == [*expected, expected[0]]


def test_hidden_states_of_an_encoder_are_those_of_transformers():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    module = BertModel(BertConfig(**sizes, max_position_embeddings=32)).eval()
    model = QEFFAutoModelForFeatureExtraction(module, pooling=None)
    model.compile(backend="openvino", seq_len=8)
    hidden = model.generate({"input_ids": [PROMPTS[0]]})[0][: len(PROMPTS[0])]
    wanted = module(torch.tensor([PROMPTS[0]])).last_hidden_state[0].detach().numpy()
    np.testing.assert_allclose(hidden, wanted, rtol=1e-4, atol=1e-4)


def test_an_artifact_holds_the_program_and_no_path(model):
    directory = model.compiled.directory
    names = {path.name for path in directory.iterdir()}
    assert "program.blob" in names
    assert not {name for name in names if name.startswith("model.onnx")}
    assert str(directory.parent) not in (directory / "compile.log").read_text()


def test_running_imports_neither_torch_nor_the_compilers_side(model):
    code = (
        "import json, sys; from qeff_framework import load_compiled; load_compiled(sys.argv[1]).close(); "
        "names = ('torch', 'transformers', 'onnx', 'onnx_ir', 'openvino_backend.compiling'); "
        "print(json.dumps([name for name in names if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code, str(model.compiled.directory)]
    assert json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"precision": "int3"}, "must be one of 'f32', 'bf16'"),
        ({"num_threads": 2}, "is an option of the runtime"),
        ({"include_sampler": True}, "does not support include_sampler"),
    ],
)
def test_what_cannot_be_done_is_refused(model, options, complaint):
    with pytest.raises(QEFFError, match=complaint):
        model.compile(backend="openvino", **SIZES, **options)


def test_bfloat16_is_refused_where_the_cpu_would_compute_in_float32(model):
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has bfloat16")
    with pytest.raises(OptionError, match="needs a CPU with bfloat16"):
        model.compile(backend="openvino", batch_size=2, precision="bf16", **SIZES)


def test_what_the_compiler_refuses_says_why(module, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "openvino.py").write_text("raise ImportError('libopenvino.so is missing')")
    with pytest.raises(QEFFError, match=r"libopenvino.so is missing.*Full output: "):
        QEFFAutoModelForCausalLM(module).compile(backend="openvino", batch_size=3, **SIZES)
