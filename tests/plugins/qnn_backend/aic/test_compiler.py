"""Compiling with the stand-in QAIRT tools: exact command lines and files, failures, dry runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from qeff_framework.contracts import CompiledModel, Specialization, StateSpec, TensorSpec
from qeff_framework.errors import BackendUnavailableError, CompileError, ExecutionError
from qeff_framework.toolchains import Ended
from qnn_backend import QnnConstants
from qnn_backend.aic import failures, side_files
from qnn_backend.aic.sdk import PYTHON_VARIABLE
from tests.plugins.qnn_backend.aic.programs import SIZES, compile_program, open_session
from tests.sdk_standins.qairt import NOISE_VARIABLE, SUFFIX_VARIABLE, ProcessFault, fault_environment

GOLDEN = json.loads((Path(__file__).parent / "golden_commands.json").read_text(encoding="utf-8"))
PROGRAM = Path("qpc") / QnnConstants.CONTEXT_BIN_QPC_NAME
ROOT = f"${QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME}"


def shapes_of(sizes: dict[str, int]) -> tuple[Specialization, ...]:
    from qeff_framework.shapes import CausalLMShapes

    return CausalLMShapes(**{**SIZES, **sizes}).specializations()


@pytest.mark.parametrize("name", GOLDEN)
def test_standin_tools_take_exactly_these_arguments_and_files(name, standin_qairt, llama_export, tmp_path) -> None:
    case = GOLDEN[name]
    sdk = standin_qairt(profile=case["sdk"])
    options = dict(case["options"])
    if "qnn_config" in options:
        config = tmp_path / "qnn_config.json"
        config.write_text(json.dumps(options["qnn_config"]))
        options["qnn_config"] = config
    directory = tmp_path / "a program"
    compiled = compile_program(llama_export, directory, shapes=shapes_of(case["sizes"]), **options)

    runs = sdk.invocations()
    assert [run.tool for run in runs] == ["qairt-converter", "qnn-context-binary-generator"]
    argvs = [[argument.replace(str(sdk.root), ROOT) for argument in run.argv] for run in runs]
    assert argvs == [case["converter"], case["generator"]]
    assert {run.cwd for run in runs} == {directory}
    assert compiled.program["converter_arguments"] == case["converter"]
    assert compiled.program["generator_arguments"] == case["generator"]
    for file, text in case["files"].items():
        quoted_root = json.dumps(str(sdk.root))[1:-1]
        assert (directory / file).read_text(encoding="utf-8").replace(quoted_root, ROOT) == text, file
    assert (directory / PROGRAM).stat().st_size > 0
    written = {path for run in runs for path in run.written}
    assert written == {Path("model.dlc"), Path("qpc/qnngraph.serialized.bin"), PROGRAM}, "nothing outside the artifact"
    for path in directory.glob("*.*"):
        if path.suffix in (".json", ".yaml", ".log"):
            assert str(directory) not in path.read_text(encoding="utf-8"), path.name


def test_standin_commands_and_output_are_in_the_log(standin_qairt, llama_export, tmp_path, monkeypatch) -> None:
    sdk = standin_qairt()
    monkeypatch.setenv(NOISE_VARIABLE, "1")
    compiled = compile_program(llama_export, tmp_path / "program")
    log = (compiled.directory / "compile.log").read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if line.startswith("$ ")] == [
        f"$ {shlex.join([str(tool), *run.argv])}"
        for tool, run in zip((sdk.layout.converter, sdk.layout.generator), sdk.invocations(), strict=True)
    ]
    assert log.count("stand-in noise") == 2


def test_standin_program_with_a_suffix_is_taken(standin_qairt, llama_export, tmp_path, monkeypatch) -> None:
    standin_qairt()
    plain = compile_program(llama_export, tmp_path / "plain")
    monkeypatch.setenv(SUFFIX_VARIABLE, "1")
    suffixed = compile_program(llama_export, tmp_path / "suffixed")
    assert {path.name for path in (suffixed.directory / "qpc").iterdir()} == {
        "programqpc.bin",
        "qnngraph.serialized.bin",
    }
    assert (suffixed.directory / PROGRAM).read_bytes() == (plain.directory / PROGRAM).read_bytes()


def test_standin_a_given_dlc_is_compiled_without_the_converter(standin_qairt, llama_export, tmp_path) -> None:
    sdk = standin_qairt()
    first = compile_program(llama_export, tmp_path / "first")
    config = tmp_path / "qnn_config.json"
    config.write_text(json.dumps({QnnConstants.SKIP_QNN_CONVERTER_STEP_STR: True}))
    second = compile_program(
        llama_export, tmp_path / "second", dlc_file=first.directory / "model.dlc", qnn_config=config
    )
    assert [run.tool for run in sdk.invocations()[2:]] == ["qnn-context-binary-generator"]
    assert second.program["converter_arguments"] is None
    assert not (second.directory / "model.onnx").exists()
    assert (second.directory / PROGRAM).read_bytes() == (first.directory / PROGRAM).read_bytes()


def test_standin_interpreter_of_the_converter_can_be_named(standin_qairt, llama_export, tmp_path, monkeypatch) -> None:
    standin_qairt()
    interpreter = tmp_path / "python of the sdk"
    interpreter.write_text('#!/bin/sh\necho "started by name"\nexec "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(interpreter))
    compiled = compile_program(llama_export, tmp_path / "program")
    assert "started by name" in (compiled.directory / "compile.log").read_text(encoding="utf-8")


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "fault", "message"),
    [
        (
            "converter",
            ProcessFault(kill=True),
            "qairt-converter was killed by signal SIGKILL, probably because the host",
        ),
        (
            "converter",
            ProcessFault(exit_code=1, stderr=""),
            "qairt-converter ended with exit code 1 without naming an error",
        ),
        (
            "converter",
            ProcessFault(exit_code=1, stderr="Traceback\nModuleNotFoundError: No module named 'qti'\n"),
            f"No module named 'qti'. The converter is a Python script: let {PYTHON_VARIABLE}",
        ),
        ("converter", ProcessFault(exit_code=0, stderr=""), r"exit code 0, but left no model\.dlc"),
        (
            "converter",
            ProcessFault(exit_code=0, truncate_output=10),
            "qnn-context-binary-generator ended .*cannot read DLC",
        ),
        ("generator", ProcessFault(kill=True), "qnn-context-binary-generator was killed"),
        ("generator", ProcessFault(exit_code=0, stderr=""), r"left no programqpc\.bin \(nothing is there\)"),
        (
            "generator",
            ProcessFault(exit_code=0, truncate_output=0),
            r"left no programqpc\.bin \(programqpc\.bin, qnngraph",
        ),
        ("generator", ProcessFault(device_memory_bytes=10), "Not enough device memory.*more device memory"),
        (
            "generator",
            ProcessFault(exit_code=1, stderr="[ ERROR ] QAIC_ERROR:\nError message: no such kernel\n"),
            "exit code 1: Error message: no such kernel",
        ),
    ],
)
def test_standin_failures_are_explained_and_the_log_is_kept(
    tool, fault, message, standin_qairt, llama_export, tmp_path, monkeypatch
) -> None:
    standin_qairt()
    monkeypatch.setenv(*fault_environment(**{tool: fault}).popitem())
    with pytest.raises(CompileError, match=message) as caught:
        compile_program(llama_export, tmp_path / "program")
    kept = Path(re.search(r"Full output: (\S+\.log)", str(caught.value))[1])
    assert kept.read_text(encoding="utf-8").startswith("$ ")


def test_standin_time_limit_is_the_option(standin_qairt, llama_export, tmp_path) -> None:
    standin_qairt()
    with pytest.raises(CompileError, match=r"qairt-converter did not end within 0 minutes \(qairt_timeout_minutes\)"):
        compile_program(llama_export, tmp_path / "program", qairt_timeout_minutes=0)


def test_standin_refuses_what_only_the_tools_can_know(standin_qairt, llama_export, tmp_path) -> None:
    standin_qairt()
    config = tmp_path / "qnn_config.json"
    for number, (content, message) in enumerate(
        (
            (
                {"converter_args_extension": "--nothing_known"},
                "unrecognized arguments.*see the extensions in the qnn_config",
            ),
            ({"context_binary_generator_args_extension": "--nothing=1"}, "unrecognized option.*see the extensions"),
            (
                {"qnn_compilation_backend": {"compiler_of_tomorrow": 1}},
                "Unknown Key = compiler_of_tomorrow.*take it out of",
            ),
        )
    ):
        config.write_text(json.dumps(content))
        with pytest.raises(CompileError, match=message):
            compile_program(llama_export, tmp_path / f"program{number}", qnn_config=config)


@pytest.mark.parametrize(
    ("parts", "description", "message"),
    [
        ({"converter"}, "good", "qairt-converter is not there"),
        ({"generator"}, "good", "qnn-context-binary-generator is not there"),
        ({"backend"}, "good", "libQnnAic.so is not there"),
        ({"extensions"}, "good", "libQnnAicNetRunExtensions.so is not there"),
        ({"yaml"}, "good", "sdk.yaml cannot be read"),
        (set(), "corrupt", "sdk.yaml is not YAML"),
        (set(), "list", "sdk.yaml names no version"),
        (set(), "no version", "sdk.yaml names no version"),
    ],
)
def test_standin_incomplete_sdk_is_refused_with_the_remedy(
    parts, description, message, standin_qairt, llama_export, tmp_path
) -> None:
    standin_qairt(without=parts, description=description)
    with pytest.raises(BackendUnavailableError, match=rf"{message}.*set QNN_SDK_ROOT.*dry_run=True"):
        compile_program(llama_export, tmp_path / "program")
    assert not any((tmp_path / "program").iterdir()), "found out before anything was written"


def test_without_sdk_compiling_names_the_variable(no_sdk, llama_export, tmp_path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"QNN_SDK_ROOT is not set.*dry_run=True"):
        compile_program(llama_export, tmp_path / "program")


@pytest.mark.parametrize("count", [0, 3])
def test_other_than_one_or_two_specializations_are_refused_early(count, no_sdk, llama_export, tmp_path) -> None:
    lengths = [
        Specialization(name=f"s{number}", dims={"batch_size": 1, "seq_len": number + 1, "ctx_len": 24})
        for number in range(count)
    ]
    with pytest.raises(CompileError, match=rf"{count} specializations were asked for .*backend='qaic'"):
        side_files.graph_names(lengths)
    if count:
        with pytest.raises(CompileError, match="supports one or two"):
            compile_program(llama_export, tmp_path / "program", shapes=lengths, dry_run=True)
        assert not any((tmp_path / "program").iterdir())


def test_a_size_that_outputs_alone_have_is_that_of_one_length() -> None:
    """The scores of a clip's frames: how many there are is known behind the convolutions."""
    clip = TensorSpec(name="input_values", dtype="float32", shape=("batch_size", "seq_len"))
    scores = TensorSpec(name="logits", dtype="float32", shape=("batch_size", "num_frames", 20))
    short, long = (
        Specialization(name=f"s{frames}", dims={"batch_size": 2, "seq_len": 320 * frames, "num_frames": frames})
        for frames in (5, 9)
    )
    assert side_files.sizes_of_outputs([clip], [scores], [short]) == {"num_frames": 5}
    with pytest.raises(CompileError, match=r"'logits' has the size num_frames.*compile for one length"):
        side_files.sizes_of_outputs([clip], [scores], [short, long])


# --- dry runs ---------------------------------------------------------------------------------------------------------


def run_script(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(directory / "compile.sh")],
        cwd=directory.parent,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("profile", ["2.34", "2.37"])
def test_standin_dry_run_bundle_can_be_moved_and_compiles_to_the_same_program(
    profile, standin_qairt, no_sdk, llama_export, tmp_path, monkeypatch
) -> None:
    config = tmp_path / "qnn_config.json"
    config.write_text(json.dumps({QnnConstants.CONTEXT_BIN_ARGS_EXTENSION_STR: "--log_level 'debug'"}))
    bundle = compile_program(
        llama_export, tmp_path / "bundle", dry_run=True, mxint8_kv_cache=True, num_devices=2, qnn_config=config
    )
    assert {path.name for path in bundle.directory.iterdir()} == {
        "compile.sh",
        "compiled.json",
        "custom_io_config.yaml",
        "model.onnx",
        "model.onnx.data",
        "qnn_compile_backend.json",
        "qnn_data_format_config.json",
        "specializations.json",
        "tensor_slicing.json",
    }
    with pytest.raises(ExecutionError, match=r"dry run.*compile\.sh"):
        open_session(bundle)
    moved = tmp_path / "moved to a place with 'blanks'"
    shutil.move(bundle.directory, moved)
    sdk = standin_qairt(profile=profile)
    direct = compile_program(llama_export, tmp_path / "direct", mxint8_kv_cache=True, num_devices=2, qnn_config=config)
    monkeypatch.setenv(SUFFIX_VARIABLE, "1")
    done = run_script(moved, QNN_SDK_ROOT=str(sdk.root), **{SUFFIX_VARIABLE: "1"})
    assert done.returncode == 0, done.stderr
    assert (moved / PROGRAM).read_bytes() == (direct.directory / PROGRAM).read_bytes()
    assert CompiledModel.load(moved).program["folder"] == "qpc"
    runs = [sorted(run.argv) for run in sdk.invocations()]
    assert runs[:2] == runs[2:], "the script starts the tools as the backend does"
    assert json.loads((moved / QnnConstants.QNN_COMPILER_CONFIG_NAME).read_text()) == json.loads(
        (direct.directory / QnnConstants.QNN_COMPILER_CONFIG_NAME).read_text()
    )


def test_standin_dry_run_script_reports_failures(standin_qairt, no_sdk, llama_export, tmp_path) -> None:
    bundle = compile_program(llama_export, tmp_path / "bundle", dry_run=True).directory
    assert "QNN_SDK_ROOT is not set" in run_script(bundle).stderr
    incomplete = standin_qairt(without={"generator"})
    refused = run_script(bundle, QNN_SDK_ROOT=str(incomplete.root))
    assert refused.returncode == 1
    assert "qnn-context-binary-generator is not there" in refused.stderr
    sdk = standin_qairt()
    broken = run_script(bundle, QNN_SDK_ROOT=str(sdk.root), **fault_environment(generator=ProcessFault(exit_code=9)))
    assert broken.returncode == 1
    assert "qnn-context-binary-generator failed with exit code 9" in broken.stderr
    (bundle / "custom_io_config.yaml").write_text("nothing: 1\n")
    refused = run_script(bundle, QNN_SDK_ROOT=str(sdk.root))
    assert refused.returncode == 1
    assert "must have exactly the keys" in refused.stderr
    assert "qairt-converter failed with exit code 1" in refused.stderr
    assert not (bundle / PROGRAM).exists()


# --- side files -------------------------------------------------------------------------------------------------------


def test_side_files_of_states_that_are_no_caches() -> None:
    """Only caches are compressed; a symbol that differs gives two shapes, one that does not gives one."""
    sizes = [
        Specialization(name="a", dims={"batch_size": 1, "seq_len": 8, "other": 2}),
        Specialization(name="b", dims={"batch_size": 1, "seq_len": 1, "other": 2}),
    ]
    inputs = [
        TensorSpec(name="input_ids", dtype="int64", shape=("batch_size", "seq_len")),
        TensorSpec(name="position_ids", dtype="int64", shape=("batch_size", "other")),
        TensorSpec(name="mask: x", dtype="bool", shape=("other", 3)),
        TensorSpec(name="past", dtype="float32", shape=("batch_size", 4)),
        TensorSpec(name="conv", dtype="float32", shape=("batch_size", 4)),
        TensorSpec(name="count", dtype="int64", shape=("batch_size", 1)),
    ]
    states = [
        StateSpec(input="past", output="past_RetainedState"),
        StateSpec(input="conv", output="conv_RetainedState", kind="conv"),
        StateSpec(input="count", output="count_RetainedState", kind="recurrent"),
    ]
    dtypes = {spec.name: spec.dtype for spec in inputs}
    outputs = [TensorSpec(name=state.output, dtype=dtypes[state.input], shape=("batch_size", 4)) for state in states]
    document = yaml.safe_load(side_files.io_config(inputs, outputs, states, sizes, mxint8=True))
    desired = {item["Name"]: item["Desired Model Parameters"] for section in document.values() for item in section}
    assert desired == {
        "input_ids": {"DataType": "int64", "Shape": "(1, 8), (1, 1)"},
        "position_ids": {"DataType": "int64", "Shape": "(1, 2), (1, 2)"},
        "mask: x": {"DataType": "bool", "Shape": "(2, 3)"},
        "past": {"DataType": "uint8", "Shape": "(1, 4)"},
        "conv": {"DataType": "float16", "Shape": "(1, 4)"},
        "count": {"DataType": "int64", "Shape": "(1, 1)"},
        "count_RetainedState": {"DataType": "int64"},
        "past_RetainedState": {"DataType": "uint8"},
        "conv_RetainedState": {"DataType": "float16"},
    }
    formats = json.loads(side_files.data_formats(states, ["model"]))
    assert [tensor["tensor_name"] for tensor in formats["graphs"][0]["tensors"]] == ["past", "past_RetainedState"]


def test_first_useful_line_of_the_compiler_inside_the_generator() -> None:
    output = "[ ERROR ] QAIC_ERROR:\nError message: No input that uniquely identifies specialization"
    text = failures.diagnosis().explain("tool", Ended(exit_code=1, timed_out=False, output=output))
    assert text.startswith("tool ended with exit code 1: Error message: No input")
    assert "choose other lengths" in text
