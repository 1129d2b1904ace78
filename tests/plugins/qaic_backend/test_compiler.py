"""Compiling with the stand-in's compiler: exact command lines and files, retries, failures, dry runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml

from qaic_backend.compiler import failures, side_files
from qaic_backend.compiler.checks import check_operators, check_program
from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework.contracts import CompiledModel, ExportedModel, Specialization, StateSpec, TensorSpec
from qeff_framework.errors import BackendUnavailableError, CompileError, ExecutionError, OptionError
from tests.plugins.qaic_backend.sessions import compile_program, continuation, open_session
from tests.sdk_standins.qaic import ProcessFault, fault_environment

GOLDEN = json.loads((Path(__file__).parent / "golden_arguments.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", GOLDEN)
def test_standin_takes_exactly_these_arguments(name: str, standin, exports, tmp_path) -> None:
    case = GOLDEN[name]
    sdk = standin(profile=case["sdk"])
    exported = exports("llama", *case.get("extra_inputs", ()))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in case["options"].items()}
    compiled = compile_program(exported, tmp_path / "program", **options)
    (run,) = sdk.invocations()
    assert run.tool == case["tool"]
    assert list(run.argv) == case["arguments"]
    assert run.cwd == tmp_path / "program"
    assert (compiled.directory / "qpc" / "programqpc.bin").stat().st_size > 0
    assert compiled.program == {"folder": "qpc", "arguments": case["arguments"], "host_graphs": []}
    for file, text in case["files"].items():
        assert (compiled.directory / file).read_text(encoding="utf-8") == text
    for path in compiled.directory.glob("*.*"):
        if path.suffix in (".json", ".yaml", ".log"):
            assert str(compiled.directory) not in path.read_text(encoding="utf-8"), path.name


def test_standin_named_form_refused_is_tried_again_flat(standin, llama_export, tmp_path) -> None:
    sdk = standin(profile="1.21", without={"xml"})
    compiled = compile_program(llama_export, tmp_path / "program")
    assert [run.exit_code for run in sdk.invocations("qaic-compile")] == [255, 0]
    assert "-network-specialization-config=specializations_flat.json" in compiled.program["arguments"]
    log = (compiled.directory / "compile.log").read_text(encoding="utf-8")
    assert log.count("$ ") == 2
    assert failures.NAMED_FORM_REFUSED in log


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            ProcessFault(kill=True),
            "killed by signal SIGKILL, probably because the host ran out of memory.*compile_threads",
        ),
        (ProcessFault(exit_code=1, stderr=""), "ended with exit code 1 without naming an error"),
        (
            ProcessFault(exit_code=1, stderr="note\nInvalid option -x. Use -h\n"),
            "exit code 1: Invalid option -x.*target_sdk",
        ),
        (ProcessFault(exit_code=0, truncate_output=0), "exit code 0, but left no program"),
        (ProcessFault(device_memory_bytes=10), "more device memory"),
    ],
    ids=["killed", "silent", "option", "no program", "memory"],
)
def test_standin_failures_are_explained_and_the_log_is_kept(
    fault, message, standin, llama_export, tmp_path, monkeypatch
) -> None:
    standin()
    monkeypatch.setenv(*fault_environment(compile=fault).popitem())
    with pytest.raises(CompileError, match=message) as caught:
        compile_program(llama_export, tmp_path / "program")
    kept = Path(re.search(r"Full output: (\S+\.log)", str(caught.value))[1])
    assert kept.read_text(encoding="utf-8").startswith("$ ")
    kept.unlink()


def test_standin_time_limit_is_the_option(standin, llama_export, tmp_path) -> None:
    standin()
    with pytest.raises(CompileError, match=r"qaic-compile did not end within 0 minutes \(compile_timeout_minutes\)"):
        compile_program(llama_export, tmp_path / "program", compile_timeout_minutes=0)


def test_unknown_extra_flag_is_the_compilers_to_refuse(standin, llama_export, tmp_path) -> None:
    standin()
    with pytest.raises(CompileError, match="Invalid option -no-such-flag"):
        compile_program(llama_export, tmp_path / "program", extra_flags=("-no-such-flag",))


def test_standin_a_model_that_is_not_onnx(standin, llama_export, tmp_path, monkeypatch) -> None:
    standin()
    monkeypatch.setattr(
        "qaic_backend.compiler.bundle.ir.save",
        lambda model, path, **options: Path(path).write_bytes(b"no model at all"),
    )
    with pytest.raises(CompileError, match=r"exit code 1: .*Error message:"):
        compile_program(llama_export, tmp_path / "program")


def test_standin_paths_with_blanks(standin, llama_export, tmp_path) -> None:
    standin()
    compiled = compile_program(llama_export, tmp_path / "a folder with blanks" / "and 'quotes'")
    session = open_session(compiled)
    assert np.isfinite(session.run({"input_ids": np.array([[7]]), "position_ids": np.array([[0]])})["logits"]).all()
    session.close()


def test_without_sdk_compiling_names_path_and_remedies(no_sdk, llama_export, tmp_path) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"{no_sdk}/exec/qaic-compile.*{ROOT_VARIABLE}.*dry_run=True"):
        compile_program(llama_export, tmp_path / "program")


@pytest.mark.parametrize("profile", ["1.21", "1.22"])
def test_dry_run_bundle_can_be_moved_and_compiles_to_the_same_program(
    profile, standin, no_sdk, llama_export, tmp_path, monkeypatch
) -> None:
    bundle = compile_program(llama_export, tmp_path / "bundle", dry_run=True)
    assert not (bundle.directory / "qpc").exists()
    with pytest.raises(ExecutionError, match=r"dry run.*compile\.sh"):
        open_session(bundle)
    moved = tmp_path / "moved to a place with blanks"
    shutil.move(bundle.directory, moved)
    sdk = standin(profile=profile)
    direct = compile_program(llama_export, tmp_path / "direct")

    done = subprocess.run(
        [str(moved / "compile.sh")],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", ROOT_VARIABLE: str(sdk.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    session = open_session(CompiledModel.load(moved))
    assert np.isfinite(session.run({"input_ids": np.array([[7]]), "position_ids": np.array([[0]])})["logits"]).all()
    session.close()
    program = Path("qpc") / "programqpc.bin"
    assert (moved / program).read_bytes() == (direct.directory / program).read_bytes()


def test_dry_run_script_reports_a_failure(standin, no_sdk, llama_export, tmp_path) -> None:
    bundle = compile_program(llama_export, tmp_path / "bundle", dry_run=True)
    script = str(bundle.directory / "compile.sh")
    missing = subprocess.run(
        [script], env={**os.environ, ROOT_VARIABLE: str(no_sdk)}, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert f"no compiler in {no_sdk}/exec" in missing.stderr
    (bundle.directory / "custom_io.yaml").write_text("- IOName: nothing\n  Precision: float16\n")
    sdk = standin(profile="1.22")
    refused = subprocess.run(
        [script], env={**os.environ, ROOT_VARIABLE: str(sdk.root)}, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "'nothing'" in refused.stderr
    assert not (bundle.directory / "qpc" / "programqpc.bin").exists()


def test_standin_large_weights_are_split_into_several_files(standin, llama_export, tmp_path, monkeypatch) -> None:
    standin()
    whole = compile_program(llama_export, tmp_path / "whole")
    monkeypatch.setattr("qaic_backend.compiler.bundle.MAX_WEIGHTS_FILE_BYTES", 20_000)
    split = compile_program(llama_export, tmp_path / "split")
    parts = sorted(split.directory.glob("model*.data"))
    assert len(parts) > 1
    assert all(part.stat().st_size <= 20_000 for part in parts)
    answers = []
    for compiled in (whole, split):
        session = open_session(compiled)
        answers.append(continuation(session, [[5, 17, 99, 23, 42]], chunk=4, new_tokens=5))
        session.close()
    assert answers[0] == answers[1]


def test_standin_sub_functions(standin, llama_export, llama_program, tmp_path) -> None:
    """Nothing in a sub-function has a shape that is known at run time only, and no index is beyond the cache when reading."""
    standin()
    plain = open_session(llama_program)
    expected = continuation(plain, [[5, 17, 99, 23, 42]], chunk=4, new_tokens=5)
    plain.close()
    compiled = compile_program(llama_export, tmp_path / "program", sub_functions=True)
    assert "-sub-functions" in compiled.program["arguments"]
    session = open_session(compiled)
    assert continuation(session, [[5, 17, 99, 23, 42]], chunk=4, new_tokens=5) == expected
    session.close()


def test_old_sdk_refuses_what_it_does_not_know(standin, llama_export, tmp_path) -> None:
    sdk = standin(profile="legacy")
    with pytest.raises(OptionError, match="know ai100 only"):
        compile_program(llama_export, tmp_path / "program", hw_version="ai200")
    assert sdk.invocations("qaic-exec") == []


def test_node_names_are_unique(standin, llama_export, tmp_path) -> None:
    standin()
    compiled = compile_program(llama_export, tmp_path / "program")
    names = [node.name for node in onnx.load(compiled.directory / "model.onnx", load_external_data=False).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


# --- what is refused before the compiler is started ------------------------------------------------------------------


def exported(*inputs: TensorSpec, states: tuple[StateSpec, ...] = ()) -> ExportedModel:
    return ExportedModel(
        directory=Path(), task="encoder", model_file="model.onnx", inputs=inputs, outputs=(), states=states
    )


def sizes(**dims: int) -> Specialization:
    return Specialization(name="-".join(map(str, dims.values())), dims=dims)


IDS = TensorSpec(name="input_ids", dtype="int64", shape=("batch_size", "seq_len"))
MASK = TensorSpec(name="mask", dtype="int64", shape=("other",))
PAST = TensorSpec(name="past", dtype="float32", shape=("batch_size", 2))


@pytest.mark.parametrize(
    ("model", "specializations", "message"),
    [
        (exported(IDS), [sizes(batch_size=1)], "no value for seq_len"),
        (
            exported(IDS),
            [sizes(batch_size=1, seq_len=8), sizes(batch_size=1, seq_len=8, other=1)],
            "give every input the same shape",
        ),
        (
            exported(IDS, MASK),
            [
                sizes(batch_size=1, seq_len=8, other=1),
                sizes(batch_size=1, seq_len=8, other=2),
                sizes(batch_size=1, seq_len=1, other=1),
            ],
            "no single input has a different shape",
        ),
        (
            exported(IDS, PAST, states=(StateSpec(input="past", output="next"),)),
            [sizes(batch_size=1, seq_len=8)],
            "pairs it only with past_RetainedState",
        ),
    ],
    ids=["unbound", "equal", "no telling input", "state name"],
)
def test_what_cannot_work_is_refused_before_the_compiler(model, specializations, message) -> None:
    with pytest.raises(CompileError, match=message):
        check_program(model, specializations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fp32_nodes": ("logits", "logit")}, r"no node whose first output is logit; did you mean logits"),
        (
            {"keep_original_precision_for_nodes": ("Softmax", "CustomRmsNorm")},
            r"keep_original_precision_for_nodes: there is no operator CustomRmsNorm; did you mean CustomRMSNorm",
        ),
        ({"execute_nodes_in_fp16": ("MatMull",)}, r"there is no operator MatMull; did you mean MatMul"),
    ],
)
def test_misspelt_nodes_and_operators_are_refused_before_the_compiler(
    options, message, standin, llama_export, tmp_path
) -> None:
    """The compiler ignores what it does not know, and the program overflows where it should not."""
    sdk = standin()
    with pytest.raises(CompileError, match=message):
        compile_program(llama_export, tmp_path / "program", **options)
    assert sdk.invocations("qaic-compile") == []
    # One list for many models: those without such nodes take it as well.
    compile_program(
        llama_export, tmp_path / "bundle", dry_run=True, keep_original_precision_for_nodes=("LayerNormalization",)
    )


def test_loops_that_are_still_there_are_refused_before_the_compiler() -> None:
    body = ir.Graph([], [], nodes=[], name="step")
    loop = ir.Node("", "Loop", inputs=[], attributes=[ir.AttrGraph("body", body)], num_outputs=1, name="search")
    model = ir.Model(ir.Graph([], loop.outputs, nodes=[loop], opset_imports={"": 18}), ir_version=10)
    with pytest.raises(CompileError, match=r"has 1 loops that cannot be unrolled \(search first\).*use ort_sim"):
        check_operators(model)


def test_side_files_are_what_the_formats_ask_for() -> None:
    shapes = [sizes(batch_size=1, seq_len=32), sizes(batch_size=1, seq_len=1)]
    assert json.loads(side_files.flat_specializations(shapes)) == {
        "specializations": [{"batch_size": "1", "seq_len": "32"}, {"batch_size": "1", "seq_len": "1"}]
    }
    assert json.loads(side_files.named_specializations(shapes))["specializations"][1] == {
        "name": "1-1",
        "symbols": {"batch_size": "1", "seq_len": "1"},
    }
    state = StateSpec(input="past: 0", output="past: 0_RetainedState")
    assert yaml.safe_load(side_files.custom_io([state], "mxint8")) == [
        {"IOName": "past: 0", "Precision": "mxint8"},
        {"IOName": "past: 0_RetainedState", "Precision": "mxint8"},
    ]
    assert yaml.safe_load(side_files.node_precision(["a", "b/c"])) == {"FP32NodeInstanceNames": ["a", "b/c"]}


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "reading\nQAIC_ERROR:\nError message:  [Operator-'n1', opset_version-13, ir_version-7] : bad\n",
            "Error message:  [Operator-'n1', opset_version-13, ir_version-7] : bad",
        ),
        (
            "warning: slow\nterminate called: [json.exception.type_error.302] type\n",
            "terminate called: [json.exception.type_error.302] type",
        ),
        ("only progress\nlast words\n", "last words"),
    ],
)
def test_first_error_line(output: str, line: str) -> None:
    assert failures.DIAGNOSIS.first_error_line(output) == line
