"""``qeff export`` and ``qeff compile``: options typed as text, checked before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qeff_framework.contracts import CompiledModel, ExportedModel


def compiled_options(result):
    assert result.code == 0, result.err
    return result.json["options"]


def test_export_to_a_directory_finds_what_lies_there(model_qeff, llama, exported, monkeypatch):
    monkeypatch.setattr("qeff_framework.sources.CheckpointSource.load", lambda *_: pytest.fail("weights were loaded"))

    result = model_qeff("export", llama, "-o", exported, "--json")

    assert result.code == 0
    loaded = ExportedModel.load(Path(result.json["directory"]))
    assert loaded.directory == exported
    assert Path(result.json["onnx"]) == loaded.model_path
    assert result.json["task"] == loaded.task == "causal-lm"


def test_sizes_and_options_reach_the_backend(model_qeff, llama):
    flags = ["--prefill-seq-len", 8, "--ctx-len", 256, "--num-cores", 4]
    options = ["level=3", "mode=plain", "flags=-a=1,-b", "batch_size=3"]

    result = model_qeff("compile", llama, "--backend", "toy", *flags, *(f"-O{text}" for text in options), "--json")

    written = compiled_options(result)
    assert (written["num_cores"], written["level"], written["flags"]) == (4, 3, ["-a=1", "-b"])
    assert result.json["specializations"] == [
        {"name": "prefill", "dims": {"batch_size": 3, "ctx_len": 256, "seq_len": 8}},
        {"name": "decode", "dims": {"batch_size": 3, "ctx_len": 256, "seq_len": 1}},
    ]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("prefil_seq_len=8", "did you mean 'prefill_seq_len'?"),
        ("num_core=8", "did you mean 'num_cores'?"),
        ("optimization_level=basic", "is an option of backend 'ort_sim'"),
        ("level=much", "option 'level' must be int"),
        ("level=-1", "must be at least 0"),
        ("mode=fast", "must be one of 'plain'"),
        ("mxfp6_matmul=perhaps", "must be bool"),
        ("dry_run=true", "use --dry-run"),
        ("kv_offload=false", "use --kv-offload or --no-kv-offload"),
    ],
)
def test_wrong_option_fails_before_the_model_is_opened(model_qeff, option, told):
    result = model_qeff("compile", "./there-is-no-such-model", "--backend", "toy", "-O", option)

    assert result.code == 2
    assert told in result.err
    assert "there-is-no-such-model" not in result.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--ctx-len", "many"], "option 'ctx_len' must be int"),
        (["--ctx-len", "8", "--prefill-seq-len", "16"], "greater than ctx_len=8"),
        (["--seq-len", "8"], "unknown option 'seq_len'"),
        (["--ctx-len", "8", "-O", "ctx_len=16"], "given twice"),
        (["-O", "mxfp6_matmul=true"], "does not support mxfp6_matmul"),
        (["--no-kv-offload"], "kv_offload= is for vision-language models"),
        (["--kv-offload", "--task", "causal-lm"], "are for vision-language models, and --task is causal-lm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_size_fails_before_any_work(model_qeff, llama, argv, told, monkeypatch):
    monkeypatch.setattr("qeff_framework.sources.CheckpointSource.load", lambda *_: pytest.fail("weights were loaded"))

    result = model_qeff("compile", llama, "--backend", "toy", *argv)

    assert result.code == 2
    assert told in result.err


def test_several_problems_are_told_at_once(model_qeff):
    result = model_qeff(
        "compile", "./no-model", "--backend", "toy", "-O", "num_core=1", "-O", "level=x", "-O", "mode=y"
    )

    assert result.err.count("qeff: error") == 1
    assert all(name in result.err for name in ("num_core", "'level'", "'mode'"))


def test_compiler_that_refuses_is_1(model_qeff, llama):
    result = model_qeff("-q", "compile", llama, "--backend", "toy", "-O", "mode=refuse")

    assert result.code == 1
    assert (
        result.err
        == "qeff: error: backend 'toy' (qeff-toy-backend 0.3.0): the toy compiler refuses this model; try mode=plain\n"
    )


def test_dry_run_leaves_an_artifact_that_cannot_run(model_qeff, llama, tmp_path):
    result = model_qeff("compile", llama, "--backend", "toy", "--dry-run", "-o", tmp_path / "dry")
    run = model_qeff("generate", tmp_path / "dry", "--prompt", "one")

    assert result.code == 0
    assert "a dry run" in result.out
    assert run.code == 1
    assert "dry_run" in run.err


def test_backend_is_chosen_and_said(model_qeff, llama):
    result = model_qeff("compile", llama)

    assert result.code == 0
    assert "backend 'ort_sim' chosen" in result.err


def test_stages_are_plain_lines_where_there_is_no_terminal(model_qeff, llama):
    result = model_qeff("compile", llama, "--backend", "toy", "-O", "level=77", "--extension", "timing")

    lines = result.err.splitlines()
    assert "compiling tiny-llama for toy" in lines
    assert any(line.startswith("compile took ") for line in lines)


def test_misspelt_names_are_2(model_qeff, llama):
    extension = model_qeff("compile", llama, "--backend", "toy", "--extension", "timming")
    backend = model_qeff("compile", llama, "--backend", "ortsim")

    assert (extension.code, backend.code) == (2, 2)
    assert "did you mean 'timing'?" in extension.err
    assert "no backend named 'ortsim' is installed, did you mean 'ort_sim'? (installed: " in backend.err
    assert "pip install" not in backend.err


def test_rebuild_replaces_the_program(model_qeff, llama):
    argv = ["compile", llama, "--backend", "toy", "-O", "level=5", "--json"]
    first = Path(model_qeff(*argv).json["directory"]) / "program.txt"
    inode = first.stat().st_ino

    assert model_qeff(*argv).code == 0
    assert first.stat().st_ino == inode
    again = model_qeff(*argv, "--rebuild")
    assert Path(again.json["directory"]) == first.parent
    assert first.stat().st_ino != inode
    assert "compiling tiny-llama for toy" in again.err
    assert "exporting" not in again.err


def test_parallel_is_for_pipelines(model_qeff, llama):
    result = model_qeff("compile", llama, "--backend", "toy", "--parallel")

    assert result.code == 2
    assert "--parallel is for pipelines of diffusers, and tiny-llama is none; leave it out" in result.err


def test_pooling_belongs_to_encoders(model_qeff, llama):
    causal = model_qeff("compile", llama, "--backend", "toy", "--pooling", "mean")
    contradiction = model_qeff("compile", llama, "--backend", "toy", "--pooling", "mean", "--task", "causal-lm")

    assert (causal.code, contradiction.code) == (1, 2)
    assert "not a model for encoder" in causal.err


def test_program_is_found_again(model_qeff, llama, monkeypatch):
    argv = ["compile", llama, "--backend", "toy", "--ctx-len", "48", "--json"]
    first = model_qeff(*argv)
    monkeypatch.setattr("qeff_framework.sources.CheckpointSource.load", lambda *_: pytest.fail("weights were loaded"))

    second = model_qeff(*argv)

    assert json.loads(second.out) == json.loads(first.out)
    assert CompiledModel.load(Path(second.json["directory"])).backend == "toy"


def test_an_option_of_another_stage_is_refused_before_any_work(model_qeff, llama, monkeypatch):
    monkeypatch.setattr("qeff_framework.sources.CheckpointSource.load", lambda *_: pytest.fail("weights were loaded"))
    misspelt = model_qeff("generate", llama, "--backend", "toy", "--prompt", "one", "--ctx-len", "24", "-R", "shfit=2")
    assert misspelt.code == 2
    assert "runtime of backend 'toy': unknown option 'shfit', did you mean 'shift'?" in misspelt.err
    misplaced = model_qeff("compile", llama, "--backend", "toy", "-O", "shift=2")
    assert misplaced.code == 2
    assert (
        "'shift' is an option of the runtime: pass it to load() or load_compiled(), on the command line with -R"
        in misplaced.err
    )
    unlike = model_qeff("compile", llama, "--backend", "toy", "-O", "enable_chunking=true")
    assert "did you mean" not in unlike.err


@pytest.mark.parametrize(
    ("lay_down", "told"),
    [
        (lambda path: path.write_text("x"), "is not a directory"),
        (lambda path: (path.mkdir(), (path / "x").touch()), "not empty and does not hold this artifact"),
    ],
    ids=["a file", "other files"],
)
def test_a_destination_that_cannot_be_used_is_refused_before_the_export(
    model_qeff, llama, tmp_path, monkeypatch, lay_down, told
):
    monkeypatch.setattr("qeff_framework.model.QEFFBaseModel._export", lambda *_, **__: pytest.fail("it was exported"))
    lay_down(tmp_path / "there")

    result = model_qeff("compile", llama, "--backend", "toy", "-o", tmp_path / "there")

    assert result.code == 1
    assert told in result.err


def test_an_export_is_no_place_for_a_program(model_qeff, llama, exported, monkeypatch):
    monkeypatch.setattr("qeff_framework.model.QEFFBaseModel._export", lambda *_, **__: pytest.fail("it was exported"))

    result = model_qeff("compile", llama, "--backend", "toy", "-o", exported)

    assert result.code == 1
    assert "belongs to exports, not to compiled" in result.err


@pytest.mark.parametrize(
    ("backend", "argv", "told"),
    [
        ("toy", ["-O", "levle=1", "-R", "shft=1"], ["did you mean 'level'?", "did you mean 'shift'?"]),
        ("toy", ["-R", "level=1"], ["'level' is an option of the compilation", "-O"]),
        ("toy", ["-O", "shift=1"], ["'shift' is an option of the runtime", "-R"]),
        ("toy", ["-R", "shift=much"], ["option 'shift' must be int"]),
        ("ort_sim", ["-O", "precision=w8", "-R", "pack_weights=false"], ["pack_weights=False does not go with"]),
        ("qnn", ["-O", "target=aic", "-R", "performance_mode=burst"], ["means nothing for target aic"]),
    ],
)
def test_options_of_both_stages_are_checked_before_the_model_is_opened(model_qeff, backend, argv, told):
    result = model_qeff("generate", "./there-is-no-such-model", "--backend", backend, *argv, "--prompt", "one")

    assert result.code == 2
    assert all(text in result.err for text in told)
    assert "there-is-no-such-model" not in result.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--context", "a text"], "--context is for question answering"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--ctx-len", "-1"], "ctx_len"),
        (["--extension", "timming"], "did you mean 'timing'?"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_any_work(model_qeff, llama, argv, told, monkeypatch):
    monkeypatch.setattr("qeff_framework.model.QEFFBaseModel._export", lambda *_, **__: pytest.fail("it was exported"))

    result = model_qeff("generate", llama, "--backend", "toy", "--prompt", "one", *argv)

    assert result.code in (1, 2)
    assert told in result.err
