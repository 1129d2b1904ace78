"""The backend through the framework's public interface, on the stand-in SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from qeff_framework import QEFFAutoModel, QEFFAutoModelForCausalLM, load_compiled
from qeff_framework.artifacts import Store
from qeff_framework.cli.app import main
from qeff_framework.errors import ArtifactError, BackendUnavailableError, CompileError, ExecutionError, OptionError
from tests.checkpoints import save_tiny_checkpoint
from tests.eager import eager_greedy
from tests.sdk_standins.qaic import ProcessFault, fault_environment
from tests.tiny_models import tiny_causal_lm, tiny_question_answering, tiny_token_classifier

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


def test_standin_heads_with_an_output_for_each_token(standin) -> None:
    standin()
    ids = np.array([[5, 9, 33, 71, 2, 0, 0, 0], [8, 7, 6, 5, 4, 3, 2, 1]])
    mask = (np.arange(8) < np.array([[5], [8]])).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    tagger, reader = tiny_token_classifier("bert"), tiny_question_answering("distilbert")
    with torch.no_grad():
        tags, spans = (
            module(**{name: torch.tensor(value) for name, value in feeds.items()}) for module in (tagger, reader)
        )
    ours = []
    for module in (tagger, reader):
        model = QEFFAutoModel(module)
        model.compile(backend="qaic", batch_size=2, seq_len=8, num_cores=2)
        ours.append(model.generate(feeds))
        model.load().close()
    for got, want in ((ours[0], tags.logits), (ours[1][0], spans.start_logits), (ours[1][1], spans.end_logits)):
        np.testing.assert_allclose(got[mask == 1], want.numpy()[mask == 1], atol=2e-2)


def test_standin_windows_of_layers_in_a_dry_run_that_was_compiled_since(standin, tmp_path) -> None:
    """Replicated heads and layers as functions in each of two programs; then stages and attention in blocks, on four devices."""
    sdk = standin(profile="1.22", devices="ultra")
    module, _ = tiny_causal_lm("llama", num_hidden_layers=4)
    expected = [eager_greedy(module, prompt, 4) for prompt in PROMPTS]
    changed = {"replicate_kv_heads": 2, "sub_functions": True, "num_layers_per_program": 2}
    model = QEFFAutoModelForCausalLM(module)
    bundle = model.compile(backend="qaic", dry_run=True, compile_dir=tmp_path / "bundle", **{**SIZES, **changed})
    with pytest.raises(ExecutionError, match=r"dry_run.*compile the bundle where the compiler is"):
        load_compiled(bundle.directory)
    for window in bundle.windows().values():
        text = (window.directory / "model.onnx").read_bytes()
        assert text.count(b"qeff.layers") > 1
        subprocess.run([str(window.directory / "compile.sh")], check=True, capture_output=True)
    for ids, used in (((), [0]), ((2,), [2]), ((3, 1), [1, 3])):
        with load_compiled(bundle.directory, device_ids=ids) as runner:
            assert [qid for qid, nsps in sdk.nsps_in_use().items() if nsps] == used
            assert runner.generate(prompts=PROMPTS, generation_len=4, ignore_eos=True).generated_ids == expected
    with pytest.raises(
        OptionError, match="names 3 devices.*cut into 2 programs: name 1 for all of them, or 2, 1 for each"
    ):
        load_compiled(bundle.directory, device_ids=(0, 1, 2))

    stages = {"mdp_num_partitions": 2, "num_devices": 2, "num_kv_blocks": 3, "num_cores": 9}
    model.compile(backend="qaic", num_layers_per_program=2, **{**SIZES, **stages})
    with pytest.raises(ExecutionError, match=r"cut into 2 programs.*room for 1\. Compile with num_cores=8"):
        model.load(device_ids=(0, 1))
    with model.load(device_ids=(0, 1, 2, 3)) as runner:
        assert runner.generate(prompts=PROMPTS, generation_len=4, ignore_eos=True).generated_ids == expected
    with pytest.raises(
        OptionError, match="fp32_nodes names nodes of one graph: leave it or num_layers_per_program out"
    ):
        model.compile(backend="qaic", num_layers_per_program=2, fp32_nodes=("logits",))


def test_without_sdk_a_dry_run_works_and_the_rest_says_what_to_do(no_sdk, tmp_path, monkeypatch) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    with pytest.raises(OptionError, match="did you mean 'num_cores'"):
        model.compile(backend="qaic", num_coers=14)
    with monkeypatch.context() as patch:
        patch.setattr(QEFFAutoModelForCausalLM, "_export", lambda *_, **__: pytest.fail("it is exported"))
        with pytest.raises(BackendUnavailableError, match="dry_run=True"):
            model.compile(backend="qaic", **SIZES)
    bundle = model.compile(backend="qaic", dry_run=True, compile_dir=tmp_path / "bundle", **SIZES)
    assert {"compile.sh", "model.onnx", "specializations.json", "custom_io.yaml"} <= {
        path.name for path in bundle.directory.iterdir()
    }
    with pytest.raises(ExecutionError, match=r"dry_run.*compile the bundle where the compiler is"):
        model.generate(prompts=PROMPTS, generation_len=2)


def _described(capsys, bundle) -> dict[str, Any]:
    capsys.readouterr()
    main(["inspect", str(bundle.directory), "--json"])
    described: dict[str, Any] = json.loads(capsys.readouterr().out)
    return described


def test_standin_a_dry_run_that_was_compiled_since_is_loaded(standin, tmp_path, capsys) -> None:
    sdk = standin(profile="1.22")
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    bundle = model.compile(backend="qaic", dry_run=True, compile_dir=tmp_path / "bundle", **SIZES)
    assert sdk.invocations("qaic-compile") == []
    assert _described(capsys, bundle)["dry_run"] is True
    subprocess.run([str(bundle.directory / "compile.sh")], check=True, capture_output=True)
    assert _described(capsys, bundle)["dry_run"] is False
    with load_compiled(bundle.directory) as runner:
        output = runner.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, prompt, 8) for prompt in PROMPTS]


def test_standin_log_of_a_failure_is_kept_in_the_store_and_nothing_else(standin, store_root, monkeypatch) -> None:
    standin()
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    monkeypatch.setenv(*fault_environment(compile=ProcessFault(exit_code=1, stderr="Compilation failed\n")).popitem())
    with pytest.raises(CompileError, match="exit code 1: Compilation failed") as caught:
        model.compile(backend="qaic", **SIZES)
    (log,) = (store_root / "logs").iterdir()
    assert str(caught.value).endswith(f"Full output: {log}")
    assert "Compilation failed" in log.read_text()
    assert not list((store_root / "compiled").glob("*/*"))


def test_standin_time_limit_is_not_part_of_the_key(standin) -> None:
    sdk = standin()
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    first = model.compile(backend="qaic", compile_timeout_minutes=7, mos=2, **SIZES)
    again = model.compile(backend="qaic", compile_timeout_minutes=9, mos=2, **SIZES)
    assert first.directory == again.directory
    assert len(sdk.invocations("qaic-compile")) == 1
    model.compile(backend="qaic", compile_timeout_minutes=9, mos=1, **SIZES)
    assert len(sdk.invocations("qaic-compile")) == 2


def test_standin_after_a_partial_program_the_next_compile_starts_anew(standin, tmp_path, monkeypatch) -> None:
    sdk = standin()
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    asked = {"backend": "qaic", "compile_dir": tmp_path / "program", **SIZES}
    with monkeypatch.context() as faults:
        faults.setenv(*fault_environment(compile=ProcessFault(exit_code=1, truncate_output=100)).popitem())
        with pytest.raises(CompileError, match="exit code 1"):
            model.compile(**asked)
    assert not (tmp_path / "program").exists(), "nothing half-made is left"
    compiled = model.compile(**asked)
    assert [run.exit_code for run in sdk.invocations("qaic-compile")] == [1, 0]
    assert (compiled.directory / "qpc" / "programqpc.bin").stat().st_size > 10_000


COMPILE = """
import sys
from qeff_framework import QEFFAutoModelForCausalLM
model = QEFFAutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.compile(backend="qaic", prefill_seq_len=4, ctx_len=24, num_cores=2).directory)
"""


def test_standin_two_processes_compile_once(standin, tmp_path, monkeypatch) -> None:
    sdk = standin()
    checkpoint = save_tiny_checkpoint(tmp_path / "model", "gpt2")
    home = tmp_path / "home with blanks"
    monkeypatch.setenv("QEFF_HOME", str(home))
    # Tests of the store let two processes build an export; without one to make, neither imports torch, and they compile together.
    QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    command = [sys.executable, "-c", COMPILE, str(checkpoint)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=200)[0].strip() for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert first == second
    assert "home with blanks" in first
    assert sorted(stored.kind for stored in Store(home).list()) == ["compiled", "exports"]
    assert len(sdk.invocations("qaic-compile")) == 1


def test_standin_a_store_that_cannot_be_written(standin, tmp_path, monkeypatch) -> None:
    """A file stands where the store should be: root may write anywhere else, whatever the permissions say."""
    sdk = standin()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "file" / "home"))
    module, _ = tiny_causal_lm("llama")
    with pytest.raises(ArtifactError, match="QEFF_HOME"):
        QEFFAutoModelForCausalLM(module).compile(backend="qaic", **SIZES)
    assert sdk.invocations("qaic-compile") == []
