"""The commands of QEfficient and its functions of old: the same flags, prompts and paths."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import QEfficient
from QEfficient.cloud import compile as cloud_compile
from QEfficient.cloud import execute, export, infer
from QEfficient.generation.text_generation_inference import fix_prompts, get_compilation_dims
from QEfficient.utils import create_and_dump_qconfigs, load_hf_tokenizer, load_json
from tests.docs.markdown import ROOT
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

#: Sizes of the flows, so that their programs are found again.
SIZES = "--prompt-len 4 --ctx_len 24 --num-cores 2"


@pytest.fixture(scope="module")
def answers(checkpoint: str) -> list[str]:
    tokenizer = load_hf_tokenizer(checkpoint)
    module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
    prompts = ("w5 w9 w3", "w11 w12")
    return [tokenizer.decode(eager_greedy(module, tokenizer(text)["input_ids"], 5)) for text in prompts]


def test_infer(checkpoint: str, answers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("w5 w9 w3\nw11 w12\n", encoding="utf-8")
    flags = f"--model_name {checkpoint} {SIZES} --batch-size 2 --generation-len 5 --mxfp6 --mos 1 --device_group [0]"
    for prompts in ('--prompt "w5 w9 w3|w11 w12"', f"--prompts_txt_file_path {tmp_path / 'prompts.txt'}"):
        assert infer.command(shlex.split(f"{flags} {prompts}")) == 0
        printed = capsys.readouterr().out
        assert all(answer in printed for answer in answers)
        assert "tokens/s" in printed
    assert infer.command(shlex.split(flags)) == 1
    assert "there are no prompts; give" in capsys.readouterr().err
    assert infer.command(shlex.split(f"{flags} --prompt w5 --optimisation-level none")) == 1
    assert "unknown option 'optimisation_level', did you mean" in capsys.readouterr().err


def test_export_compile_execute(
    checkpoint: str,
    answers: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QEFF_MODELS_DIR", str(tmp_path / "models"))
    assert export.command(["--model_name", checkpoint]) == 0
    onnx_path = capsys.readouterr().out.strip()
    flags = f"--onnx_path {onnx_path} --qpc-path {tmp_path / 'qpc'} {SIZES} --batch_size 1 --device_group [0]"
    assert cloud_compile.command(shlex.split(flags)) == 0
    artifact = capsys.readouterr().out.strip()
    assert artifact == str(tmp_path / "qpc" / "qpcs")
    assert get_compilation_dims(artifact) == (1, 24, None)
    flags = f"--model_name {checkpoint} --qpc_path {artifact} --generation_len 5 --device-group [0] --prompt"
    assert execute.command([*shlex.split(flags), "w11 w12"]) == 0
    assert answers[1] in capsys.readouterr().out

    tokenizer = load_hf_tokenizer(checkpoint)
    info = QEfficient.cloud_ai_100_exec_kv(tokenizer, artifact, prompt="w5 w9 w3", generation_len=5, automation=True)
    assert info.generated_texts == [[answers[0]]]
    assert "input=['w5 w9 w3']" in capsys.readouterr().out
    other = tmp_path / "other.onnx"
    with pytest.raises(NotImplementedError, match="was not exported by QEfficient.export on this machine"):
        QEfficient.compile(onnx_path=other, qpc_path=tmp_path / "b", num_cores=2)


def test_prompts_are_repeated_and_none_is_dropped() -> None:
    assert fix_prompts(["a", "b"], 3) == ["a", "b", "a"]
    assert fix_prompts(["a", "b", "c"], 2) == ["a", "b", "c"]
    assert fix_prompts(["a"], 1, 2) == ["a", "a"]


def test_finetune_is_refused_at_once() -> None:
    """In a process of its own, as it is called; nothing heavy is imported."""
    code = "import sys; from QEfficient.cloud import finetune; finetune.command([]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "QEfficient.cloud.finetune is not supported: " in done.stderr
    assert "peft" in done.stderr


def test_the_commands_of_the_page(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    found = re.findall(r"^    python -m QEfficient\.cloud\.(\w+) (.*)$", text, re.MULTILINE)
    assert [name for name, _ in found] == ["infer", "export"]
    for name, flags in found:
        command = {"infer": infer.command, "export": export.command}[name]
        small = flags.replace("gpt2", checkpoint).replace("My name is", "w5 w9").replace("_len 32", "_len 4")
        assert command(shlex.split(small.replace("_len 128", "_len 24").replace("num_cores 16", "num_cores 2"))) == 0
    assert "model.onnx" in capsys.readouterr().out


def test_qconfigs(tmp_path: Path) -> None:
    create_and_dump_qconfigs(
        str(tmp_path / "qpc"),
        tmp_path / "model.onnx",
        huggingface_config={"model_type": "llama"},
        pytorch_transforms=["A"],
        onnx_transforms=["B"],
        specializations=[{"batch_size": 1}],
        mdp_ts_num_devices=2,
        num_speculative_tokens=None,
        aic_num_cores=16,
    )
    content = load_json(tmp_path / "qconfig.json")
    assert content["huggingface_config"] == {"model_type": "llama"}
    assert content["qpc_config"]["compiler_config"]["aic_num_cores"] == 16


def test_the_tokenizer_of_a_gguf_file_is_the_one_in_the_file(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers reads it by the name of its folder and its own."""
    file = tmp_path / "model.gguf"
    file.touch()
    tokenizer, asked = load_hf_tokenizer(checkpoint), []

    def from_pretrained(place: object, **arguments: Any) -> object:
        asked.append((place, arguments["gguf_file"]))
        return tokenizer

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    assert load_hf_tokenizer(str(file)) is tokenizer
    assert asked == [(tmp_path, "model.gguf")]
