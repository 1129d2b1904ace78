"""Bad input gets a clear error, before work starts wherever that is possible, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework import QEFFAutoModel, QEFFAutoModelForCausalLM, QEFFAutoModelForFeatureExtraction, load_compiled
from qeff_framework.artifacts import Store
from qeff_framework.cli import main
from qeff_framework.errors import (
    ArtifactCorruptError,
    ArtifactError,
    CheckpointError,
    ExecutionError,
    InputError,
    OptionError,
    QEFFError,
    UnsupportedModelError,
)
from qeff_framework.runtime import CompiledCausalLM
from tests.checkpoints import save_tiny_checkpoint
from tests.fake_distributions import echo_backend, write_distribution

SIZES: dict[str, Any] = {"prefill_seq_len": 4, "ctx_len": 16, "batch_size": 2, "num_cores": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def artifact(session_store: Path, checkpoint: Path) -> Path:
    return QEFFAutoModelForCausalLM.from_pretrained(checkpoint).compile("ort_sim", **SIZES).directory


@pytest.fixture
def runner(artifact: Path) -> Iterator[CompiledCausalLM]:
    with load_compiled(artifact) as loaded:
        assert isinstance(loaded, CompiledCausalLM)
        yield loaded


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unloadable(checkpoint: Path, tmp_path: Path, store_root: Path) -> QEFFAutoModelForCausalLM:
    """A model whose weights are gone: whatever is checked before the export never notices."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix == ".json":
            (copy / file.name).write_bytes(file.read_bytes())
    return QEFFAutoModelForCausalLM.from_pretrained(copy)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_core": 16}, "unknown option 'num_core', did you mean 'num_cores'"),
        ({"ctx_length": 16}, "did you mean 'ctx_len'"),
        ({"num_cores": "16"}, "'num_cores' must be int"),
        ({"prefill_seq_len": 64, "ctx_len": 32}, "prefill_seq_len=64 is greater than ctx_len=32"),
        ({"batch_size": 0}, "'batch_size' must be at least 1"),
        ({"mxfp6_matmul": True}, "backend 'ort_sim': mxfp6_matmul=True: the CPU does not have this format"),
        ({"num_devices": 4}, "does not support num_devices=4"),
        ({"mxint8_kv_cache": True}, "mxint8_kv_cache=True: the CPU does not have"),
        ({"dry_run": True}, "does not support dry_run"),
        ({"rebuild": "false"}, "rebuild='false' must be True or False"),
        ({"ctx_len": np.int64(0)}, "'ctx_len' must be at least 2"),
    ],
)
def test_options_fail_before_the_export(
    unloadable: QEFFAutoModelForCausalLM, store_root: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(OptionError, match=complaint):
        unloadable.compile("ort_sim", **options)
    assert not (store_root / "exports").exists()


def test_an_option_of_another_backend_is_told(
    unloadable: QEFFAutoModelForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    echo_backend(site, "acme")
    with pytest.raises(OptionError, match="'optimization_level' is an option of backend 'ort_sim'"):
        unloadable.compile("acme", optimization_level="none")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        QEFFAutoModel.from_pretrained(tmp_path / "nowhere")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        QEFFAutoModel.from_pretrained(tmp_path)
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(CheckpointError, match=r"gguf_file='weights\.gguf'"):
        QEFFAutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"), [("{", "not valid JSON"), ("{}", "names no model_type"), ("[]", "model_type")]
)
def test_a_damaged_config(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=complaint):
        QEFFAutoModel.from_pretrained(tmp_path)


def test_missing_weights(unloadable: QEFFAutoModelForCausalLM, store_root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights: none of model\.safetensors"):
        unloadable.export()
    assert not list((store_root / "exports").glob("*"))
    assert not list((store_root / "staging").glob("*"))


def test_an_architecture_that_does_not_fit_the_task(tmp_path: Path, checkpoint: Path, session_store: Path) -> None:
    def folder(name: str, **config: object) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    encoder = folder("encoder", model_type="bert", architectures=["BertModel"])
    with pytest.raises(UnsupportedModelError, match="not a model for causal-lm but for encoder"):
        QEFFAutoModelForCausalLM.from_pretrained(encoder)
    with pytest.raises(UnsupportedModelError, match="not a model for encoder but for causal-lm"):
        QEFFAutoModelForFeatureExtraction.from_pretrained(checkpoint)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        QEFFAutoModel.from_pretrained(folder("charts", model_type="pix2struct", is_encoder_decoder=True))
    with pytest.raises(UnsupportedModelError, match="does not know model_type 'martian'"):
        QEFFAutoModel.from_pretrained(folder("new", model_type="martian", architectures=["MartianForCausalLM"]))


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "settings", "complaint"),
    [
        ([], {}, "no prompt|empty"),
        ([""], {}, "empty|no token"),
        ([[]], {}, "empty|no token"),
        ([[5] * 17], {}, r"17.*16|16.*17"),
        ([[5] * 10], {"generation_len": 8}, "ctx_len"),
        ([[5], [6], [7]], {}, "batch_size"),
        ([[5000]], {}, "5000"),
        ([[5]], {"generation_len": 0}, "max_new_tokens|generation_len"),
        ([[True, False]], {}, "whole numbers, and holds True"),
        (["w5 \ud83d"], {}, "half of a surrogate pair"),
        ([None], {}, "whole numbers, and holds None"),
        # What Python would take for something else, without a word.
        ([[5]], {"eos_token_id": "12"}, "eos_token_id='12' must be a token id"),
        ([[5]], {"ignore_eos": "false"}, "ignore_eos='false' must be True or False"),
        (["w5"], {"stream": "false"}, "stream='false' must be True, False or a file"),
        (["w5"], {"stop_strings": [3]}, "stop_strings"),
        ([[5]], {"bad_words_ids": [[]]}, "bad_words_ids"),
    ],
)
def test_prompts_that_do_not_fit(
    runner: CompiledCausalLM, prompts: Any, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises((InputError, OptionError), match=complaint):
        runner.generate(prompts=prompts, **settings)
    # The program is as usable as before.
    assert len(runner.generate(prompts=[[5, 6]], generation_len=3, ignore_eos=True).generated_ids[0]) == 3


def test_an_end_that_the_model_cannot_generate_is_told(
    runner: CompiledCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    runner.generate(prompts=[[5, 6]], generation_len=2, eos_token_id=[2, 5000])
    assert "eos_token_id names 5000, which the model cannot generate" in caplog.text


def test_neither_or_both_kinds_of_input(runner: CompiledCausalLM) -> None:
    for arguments in ({}, {"prompts": ["w1"], "inputs": {"input_ids": [[1]]}}):
        with pytest.raises(InputError, match="either prompts"):
            runner.generate(**arguments)


def test_tokenizer_output_is_taken_as_it_comes(runner: CompiledCausalLM, checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = ["w5 w9 w3", "w8"]
    expected = runner.generate(prompts=texts, generation_len=4, ignore_eos=True).generated_ids
    for side in ("left", "right"):
        tokenizer.padding_side = side
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        assert runner.generate(inputs, generation_len=4, ignore_eos=True).generated_ids == expected
        assert runner.generate(tokenizer, prompts=texts, generation_len=4, ignore_eos=True).generated_ids == expected
    column = np.array(texts)
    assert runner.generate(prompts=column, generation_len=4, ignore_eos=True).generated_ids == expected


def test_generate_before_compile(checkpoint: Path) -> None:
    with pytest.raises(ExecutionError, match="call compile"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint).generate(prompts=["w1"])


# --- artifacts --------------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ArtifactError, match="QEFF_HOME"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        load_compiled(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_artifact(artifact: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    victim = max((file for file in copy.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match=victim.name):
        load_compiled(copy)


@pytest.mark.parametrize("program", [{"model": "../other/model.onnx"}, {"more": [{"file": "link.onnx"}]}])
def test_an_artifact_that_names_a_file_outside_of_itself(artifact: Path, tmp_path: Path, program: Any) -> None:
    """Also one whose manifest has been made to fit: it says what was published, and proves nothing about who did."""
    import shutil

    from qeff_framework.artifacts import Manifest

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    shutil.copytree(artifact, tmp_path / "other")
    description = json.loads((copy / "compiled.json").read_text())
    description["program"] |= program
    (copy / "compiled.json").write_text(json.dumps(description))
    described = Manifest.load(copy)
    (copy / "manifest.json").unlink()
    Manifest.describe(copy, kind=described.kind, key=described.key, key_parts={}, label=described.label).save(copy)
    (copy / "link.onnx").symlink_to(tmp_path / "other" / "model.onnx")
    with pytest.raises(ArtifactCorruptError, match=r"names '.*\.onnx', which leads out of the directory"):
        load_compiled(copy)


def test_full_verification_refuses_what_the_quick_one_passes_over(artifact: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / "notes.txt").write_text("unlisted")
    load_compiled(copy).close()
    with pytest.raises(ArtifactCorruptError, match="notes.txt is not listed"):
        load_compiled(copy, verify="full")
    assert main(["generate", str(copy), "--prompt", "w1", "--max-new-tokens", "1", "--verify", "full"]) == 1
    with pytest.raises(OptionError, match="neither 'quick' nor 'full'"):
        load_compiled(copy, verify="fast")  # type: ignore[arg-type]


STALL = """
import os, time
from qeff_framework.plugin_api import hookimpl

class Stall:
    @hookimpl(wrapper=True)
    def export(self, request):
        result = yield
        with open(os.environ["STALL_MARKER"], "w") as marker:
            marker.write(str(sorted(os.listdir(request.output_dir))))
        time.sleep(120)
        return result
"""


def qeff(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qeff_framework", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_export_that_was_killed_half_way(checkpoint: Path, tmp_path: Path, store_root: Path) -> None:
    write_distribution(
        tmp_path / "site",
        "qeff-stall",
        entry_points={"qeff_framework.extensions.v1": {"stall": "qeff_stall:Stall"}},
        modules={"qeff_stall": STALL},
    )
    marker = tmp_path / "marker"
    process = qeff(
        "export",
        str(checkpoint),
        PYTHONPATH=os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]),
        QEFF_EXTENSIONS="stall",
        STALL_MARKER=str(marker),
    )
    deadline = time.monotonic() + 120
    while not marker.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert marker.exists(), process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert Store().list() == []
    assert list((store_root / "staging").iterdir())

    exported = QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    [stored] = Store().list()
    assert stored.path == exported.directory
    assert stored.intact
    assert not list((store_root / "staging").iterdir())


def test_every_error_is_one_of_ours() -> None:
    import qeff_framework.errors as errors

    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert all(issubclass(item, QEFFError) for item in classes)
