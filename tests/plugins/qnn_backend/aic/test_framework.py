"""Target aic through the framework's public interface: stand-in QAIRT tools, stand-in runtime of the card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework import QEFFAutoModel, QEFFAutoModelForCausalLM, cli, load_compiled
from qeff_framework.errors import BackendUnavailableError, CompileError, ExecutionError, OptionError
from qnn_backend import QnnConstants
from tests.checkpoints import save_tiny_checkpoint
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

pytestmark = pytest.mark.usefixtures("session_store")

PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90], [11, 29, 47, 83, 101, 6]]
SIZES = {"target": "aic", "prefill_seq_len": 4, "ctx_len": 32, "batch_size": 3, "num_cores": 2}


def test_standin_compile_and_generate_equal_eager(standin_qairt, standin_card, tmp_path: Path) -> None:
    qairt = standin_qairt()
    card = standin_card()
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    compiled = model.compile(backend="qnn", compile_dir=tmp_path / "here", **SIZES)
    output = model.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, prompt, 8) for prompt in PROMPTS]
    # A second call starts a new generation in the same session.
    again = model.generate(prompts=PROMPTS[1:2], generation_len=8, ignore_eos=True)
    assert again.generated_ids == output.generated_ids[1:2]
    model.load().close()
    assert not any(card.nsps_in_use().values())

    qconfig = json.loads((compiled.directory / "qconfig.json").read_text())
    versions = qconfig["qpc_config"]["aic_sdk_config"]
    assert {key: versions[f"qairt_sdk_{key}"] for key in ("product", "version", "build_id")} == {
        "product": "QAIRT",
        "version": "2.37.1.250807",
        "build_id": "250501",
    }
    assert qconfig["qpc_config"]["compiler_config"]["target"] == "aic"
    described = yaml.safe_load((qairt.root / QnnConstants.QNN_SDK_YAML).read_text())
    assert len(described) >= 3
    whole = {"qnn_config_path": None, **{key: str(value) for key, value in described.items()}}
    assert qconfig["qpc_config"]["qnn_config"] == whole

    model.compile(backend="qnn", compile_dir=tmp_path / "here", qairt_timeout_minutes=9, **SIZES)
    assert len(qairt.invocations("qnn-context-binary-generator")) == 1, "the program that exists is found"
    (tmp_path / "here").rename(tmp_path / "there")
    with load_compiled(tmp_path / "there") as moved:
        assert moved.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True).generated_ids == output.generated_ids

    # Attention in blocks over caches with twice the heads, in a program for each layer: the same tokens.
    wide = model.compile(backend="qnn", num_kv_blocks=3, replicate_kv_heads=2, num_layers_per_program=1, **SIZES)
    assert len(wide.windows()) == 2
    assert [spec.shape[1] for spec in wide.inputs if spec.name.startswith("past")] == [4] * 4
    again = model.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True)
    model.load().close()
    assert again.generated_ids == output.generated_ids


def test_standin_cache_in_mxint8_and_another_sdk_are_programs_of_their_own(standin_qairt, standin_card) -> None:
    first, _ = standin_qairt(), standin_card()
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    plain = model.compile(backend="qnn", **SIZES)
    compressed = model.compile(backend="qnn", mxint8_kv_cache=True, **SIZES)
    assert compressed.directory != plain.directory
    output = model.generate(prompts=PROMPTS, generation_len=4, ignore_eos=True)
    assert [len(ids) for ids in output.generated_ids] == [4, 4, 4]
    model.load().close()
    assert len(first.invocations("qairt-converter")) == 2
    older = standin_qairt(profile="2.34")
    assert model.compile(backend="qnn", **SIZES).directory != plain.directory
    assert len(older.invocations("qairt-converter")) == 1


def test_standin_encoder_with_two_lengths(standin_qairt, standin_card) -> None:
    standin_qairt()
    standin_card()
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
    with pytest.raises(CompileError, match="3 specializations were asked for"):
        model.compile(backend="qnn", target="aic", batch_size=2, seq_len=[8, 16, 24], num_cores=2)
    model.compile(backend="qnn", target="aic", batch_size=2, seq_len=[8, 16], num_cores=2)
    ids = np.array([[5, 9, 33, 71, 2, 0, 0, 0], [8, 7, 6, 5, 4, 3, 2, 1]])
    mask = (np.arange(8) < np.array([[5], [8]])).astype(np.int64)
    ours = model.generate({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        hidden = module(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    theirs = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-2)
    model.load().close()


def test_standin_several_devices_are_chosen_by_name_or_by_board(standin_qairt, standin_card) -> None:
    standin_qairt()
    card = standin_card(devices="ultra")
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    compiled = model.compile(backend="qnn", num_devices=2, **SIZES)
    with load_compiled(compiled.directory) as runner:
        assert [qid for qid, used in card.nsps_in_use().items() if used] == [0, 1]
        ids = runner.generate(prompts=PROMPTS[:1], generation_len=4, ignore_eos=True).generated_ids
    assert ids == [eager_greedy(module, PROMPTS[0], 4)]
    with load_compiled(compiled.directory, device_ids=(2, 3)):
        assert [qid for qid, used in card.nsps_in_use().items() if used] == [2, 3]
    for options, message in (
        ({"device_ids": (2,)}, "compiled for num_devices=2"),
        ({"device_ids": (2, 2)}, "must be different QIDs"),
        ({"performance_mode": "burst"}, "'performance_mode' means nothing for target aic"),
    ):
        with pytest.raises(OptionError, match=message):
            load_compiled(compiled.directory, **options)


def test_standin_failed_compile_leaves_the_log_and_nothing_else(standin_qairt, session_store, tmp_path) -> None:
    standin_qairt()
    config = tmp_path / "qnn_config.json"
    config.write_text(json.dumps({"qnn_compilation_backend": {"compiler_of_tomorrow": True}}))
    module, _ = tiny_causal_lm("llama")
    with pytest.raises(CompileError, match="Unknown Key") as caught:
        QEFFAutoModelForCausalLM(module).compile(
            backend="qnn", qnn_config=config, compile_dir=tmp_path / "here", **SIZES
        )
    assert not (tmp_path / "here").exists()
    log = Path(str(caught.value).rpartition("Full output: ")[2])
    assert log.parent == session_store / "logs"
    assert "Unknown Key" in log.read_text(encoding="utf-8")


def test_without_sdk_a_dry_run_works_and_the_rest_says_what_to_do(no_sdk, tmp_path) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    with pytest.raises(OptionError, match="did you mean 'qnn_config'"):
        model.compile(backend="qnn", qnn_confg="x")
    with pytest.raises(OptionError, match="'verify' is one of the chips with an NPU"):
        model.compile(backend="qnn", verify=False, **SIZES)
    with pytest.raises(BackendUnavailableError, match=r"QNN_SDK_ROOT is not set.*dry_run=True"):
        model.compile(backend="qnn", **SIZES)
    bundle = model.compile(backend="qnn", dry_run=True, compile_dir=tmp_path / "bundle", **SIZES)
    assert {"compile.sh", "model.onnx", "custom_io_config.yaml", QnnConstants.QNN_COMPILE_BACKEND_NAME} <= {
        path.name for path in bundle.directory.iterdir()
    }
    with pytest.raises(ExecutionError, match="dry_run"):
        model.generate(prompts=PROMPTS, generation_len=2)


def test_standin_bundle_that_was_compiled_since_is_run(standin_qairt, standin_card, tmp_path) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    bundle = model.compile(backend="qnn", dry_run=True, compile_dir=tmp_path / "bundle", **SIZES).directory
    standin_qairt()
    standin_card()
    with pytest.raises(ExecutionError, match="compile the bundle where the compiler is"):
        load_compiled(bundle)
    subprocess.run([bundle / "compile.sh"], check=True, capture_output=True)
    with load_compiled(bundle) as runner:
        ids = runner.generate(prompts=PROMPTS[:1], generation_len=4, ignore_eos=True).generated_ids
    assert ids == [eager_greedy(module, PROMPTS[0], 4)]


def test_standin_program_without_a_runtime_says_what_to_do(standin_qairt, tmp_path, monkeypatch) -> None:
    standin_qairt()
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nowhere"))
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    model.compile(backend="qnn", **SIZES)
    with pytest.raises(
        BackendUnavailableError,
        match=r"'qnn' \(qeff-qnn-backend .*\), target aic, runs programs with the backend 'qaic': .*Platform",
    ):
        model.generate(prompts=PROMPTS, generation_len=2)


def test_without_the_qaic_distribution_the_remedy_is_named(no_sdk, tmp_path, monkeypatch) -> None:
    for name in ("qaic_backend", "qaic_backend.shared"):
        monkeypatch.setitem(sys.modules, name, None)
    module, _ = tiny_causal_lm("llama")
    with pytest.raises(BackendUnavailableError, match=r"qeff-qaic-backend.*pip install 'qeff-qnn-backend\[aic\]'"):
        QEFFAutoModelForCausalLM(module).compile(backend="qnn", dry_run=True, **SIZES)


def test_importing_the_backend_loads_neither_its_targets_nor_yaml() -> None:
    code = (
        "import sys, qnn_backend; qnn_backend.QnnConstants, qnn_backend.QnnOptions(target='aic'); "
        "print([name for name in ('onnx', 'onnx_ir', 'yaml', 'numpy', 'qaic_backend', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_standin_without_the_compiler_for_npus_the_target_still_works(standin_qairt, tmp_path, monkeypatch) -> None:
    standin_qairt()
    for name in ("onnxruntime", "onnxruntime_qnn"):
        monkeypatch.setitem(sys.modules, name, None)
    module, _ = tiny_causal_lm("llama")
    compiled = QEFFAutoModelForCausalLM(module).compile(backend="qnn", compile_dir=tmp_path / "here", **SIZES)
    assert (compiled.directory / "qpc" / "programqpc.bin").is_file()


def test_standin_from_the_command_line(standin_qairt, standin_card, tmp_path, capsys) -> None:
    standin_qairt()
    standin_card()
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", "gpt2")
    program = tmp_path / "program"
    sizes = ["--prefill-seq-len", "4", "--ctx-len", "32", "-O", "num_cores=2"]
    command = ["compile", str(checkpoint), "--backend", "qnn", "-O", "target=aic", *sizes, "-o", str(program)]
    assert cli.main([*command, "-O", "mos=3"]) == 2
    assert "mos=3 must be a power of two" in capsys.readouterr().err
    assert cli.main(command) == 0
    asked = ["--prompt", "hello world", "--max-new-tokens", "6", "--json"]
    capsys.readouterr()
    assert cli.main(["generate", str(program), *asked]) == 0
    on_the_card = json.loads(capsys.readouterr().out)
    assert cli.main(["generate", str(checkpoint), "--backend", "ort_sim", *asked]) == 0
    assert on_the_card["results"] == json.loads(capsys.readouterr().out)["results"]
