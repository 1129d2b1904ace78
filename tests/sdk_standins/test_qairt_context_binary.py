"""The stand-in `qnn-context-binary-generator` and `sdk.yaml`: rows N6 to N13 of the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto
from tests.sdk_standins.graphs import Decoder
from tests.sdk_standins.qairt import (
    SUFFIX_VARIABLE,
    ProcessFault,
    fault_environment,
    install_standin,
)
from tests.sdk_standins.qairt_harness import GRAPHS, OPTIONS, OUTPUTS, Tools, io_config

MX = "QNN_TENSOR_DATA_FORMAT_MX"
STATES = ("past_key_0", "past_key_0_RetainedState")
KV_BYTES = io_config(
    {"past_key.0": ("uint8", "(1, 2, 16, 4)")}, {**OUTPUTS, "past_key.0_RetainedState": ("uint8", None)}
)


@pytest.fixture
def converted(qairt_tools: Tools) -> Tools:
    """A DLC is there."""
    outcome = qairt_tools.convert()
    assert outcome.code == 0, outcome.stderr
    return qairt_tools


def refuses(tools: Tools, *parts: str, extra: tuple[str, ...] = (), **files: Any) -> None:
    (tools.folder / "qpc" / "programqpc.bin").unlink(missing_ok=True)
    outcome = tools.generate(*extra, **files)
    assert outcome.code == 1, (outcome.code, outcome.stderr)
    for part in parts:
        assert part in outcome.stderr
    assert not outcome.program.exists()


# --- N6: options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["backend", "dlc_path", "binary_file"])
def test_standin_n6_required(option, converted) -> None:
    refuses(converted, f"--{option}", "required", without=[option])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--no_such_option", "1"), "unrecognized option '--no_such_option'"),
        (("--back", "x"), "unrecognized option '--back'"),
        (("-x",), "unrecognized option '-x'"),
        (("--log_level", "info"), "given twice"),
        (("--profiling_level",), "requires an argument"),
    ],
)
def test_standin_n6_refuses_options(extra, message, converted) -> None:
    refuses(converted, message, extra=extra)


@pytest.mark.parametrize("level", ["error", "warn", "info", "debug", "verbose"])
def test_standin_n6_log_levels(level, converted) -> None:
    assert converted.generate(log_level=level).code == 0


def test_standin_n6_other_log_level(converted) -> None:
    refuses(converted, "--log_level", "ERROR", log_level="ERROR")


def test_standin_n6_older_profile_wants_the_model_library(tmp_path) -> None:
    tools = Tools(install_standin(tmp_path / "older", profile="2.34"), tmp_path)
    assert tools.convert().code == 0
    refuses(tools, "--model is required")
    refuses(tools, "libQnnModelDlc.so", model=str(tools.sdk.layout.backend_library))
    assert tools.generate(model=str(tools.sdk.layout.model_library)).code == 0


# --- N7: libraries ----------------------------------------------------------------------------------------------------


def test_standin_n7_backend_and_extension(converted) -> None:
    layout = converted.sdk.layout
    refuses(converted, "libQnnHtp.so: no such file", backend=str(layout.libraries / "libQnnHtp.so"))
    refuses(converted, "with libQnnAic.so only", backend=str(layout.extensions_library))
    refuses(converted, "--config_file", without=["config_file"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs the object backend_extensions"),
        ({"backend_extensions": {"config_file_path": "x"}}, "config_file_path and shared_library_path"),
        (
            {"backend_extensions": {"config_file_path": "x", "shared_library_path": "libQnnAicNetRunExtensions.so"}},
            "cannot load the back-end extension",
        ),
        ({"backend_extensions": {}, "more": 1}, "nothing else"),
        ("[", "qnn_compiler.json"),
    ],
)
def test_standin_n7_config_file(content, message, converted) -> None:
    refuses(converted, message, config_file=converted.write("qnn_compiler.json", content))


def test_standin_n7_relative_paths_are_relative_to_the_working_folder(converted, tmp_path, monkeypatch) -> None:
    library = str(converted.sdk.layout.extensions_library)
    extensions = {"config_file_path": "qnn_compile_backend.json", "shared_library_path": library}
    config = converted.write("other.json", {"backend_extensions": extensions})
    refuses(converted, "config_file_path qnn_compile_backend.json: no such file", config_file=config)
    monkeypatch.chdir(tmp_path)
    assert converted.generate(config_file=config).code == 0


def test_standin_generator_needs_the_libraries_of_the_sdk(converted) -> None:
    arguments = converted.generator_arguments()
    outcome = converted.in_subprocess(converted.sdk.layout.generator, arguments, LD_LIBRARY_PATH="")
    assert outcome.code == 127
    assert "error while loading shared libraries" in outcome.stderr


# --- N8: the back end's options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compiler_num_cores": 4}, "Unknown Key = compiler_num_cores"),
        ({"compiler_retained_state": "true"}, "must be a boolean"),
        ({"compiler_retained_state": 1}, "must be a boolean"),
        ({"compiler_max_out_channel_split": 4}, "compiler_max_out_channel_split must be a text"),
        ({"compiler_num_of_cores": "4"}, "must be an integer"),
        ({"compiler_num_of_cores": True}, "must be an integer"),
        ({"compiler_num_of_cores": 17}, "1 to 16"),
        ({"compiler_num_of_cores": 0}, "1 to 16"),
        ({"compiler_VTCM_working_set_limit_ratio": "1"}, "must be a number"),
        ({"compiler_hardware_version": "9"}, "is not supported"),
        ({"compiler_compilation_target": "simulator"}, "for hardware only"),
        ({"graph_names": ["model"]}, "are not the graphs of the DLC"),
        ({"graph_names": [*reversed(GRAPHS)]}, "are not the graphs of the DLC"),
    ],
)
def test_standin_n8_refuses(change, message, converted) -> None:
    refuses(converted, message, options={**OPTIONS, **change})


def test_standin_n8_graph_names_are_required(converted) -> None:
    refuses(converted, "are not the graphs", options={k: v for k, v in OPTIONS.items() if k != "graph_names"})


# --- N9: data formats -------------------------------------------------------------------------------------------------


def formats(graphs: list[str] = GRAPHS, tensors: tuple[str, ...] = STATES, kind: str = MX) -> dict[str, Any]:
    listed = [{"tensor_name": name, "dataFormat": kind} for name in tensors]
    return {"graphs": [{"graph_name": graph, "tensors": listed} for graph in graphs]}


def test_standin_n9_mx_state(qairt_tools, runtime) -> None:
    path = qairt_tools.write("qnn_data_format_config.json", formats())
    folder = qairt_tools.program(config=KV_BYTES, data_format_config=path)
    session = runtime.session(folder)
    assert session.dtypes[session.bindings[session.index["past_key_0"]].type] == np.int8
    close = session.step([3], 0)
    np.testing.assert_allclose(close, Decoder().logits([3]), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (formats(graphs=["model"]), "unknown or repeated graph 'model'"),
        (formats(graphs=GRAPHS[:1]), "every graph needs an entry"),
        (formats(tensors=("past_key.0",)), "unknown tensor 'past_key.0'"),
        (formats(kind="MX"), "unknown dataFormat 'MX'"),
        ({"graph": []}, "needs the list graphs"),
        ({"graphs": [{"tensors": []}]}, "graph_name and tensors"),
    ],
)
def test_standin_n9_refuses(content, message, qairt_tools) -> None:
    assert qairt_tools.convert(config=KV_BYTES).code == 0
    refuses(qairt_tools, message, data_format_config=qairt_tools.write("formats.json", content))


def test_standin_n9_bytes_need_a_format_and_the_format_needs_bytes(qairt_tools) -> None:
    assert qairt_tools.convert(config=KV_BYTES).code == 0
    refuses(qairt_tools, "without quantization parameters")
    assert qairt_tools.convert().code == 0
    refuses(qairt_tools, "a tensor in MX format is uint8", data_format_config=qairt_tools.write("f.json", formats()))


# --- N10: several devices ---------------------------------------------------------------------------------------------


def partition(*devices: dict[str, int], **connection: Any) -> dict[str, Any]:
    ids = [device["deviceId"] for device in devices]
    return {
        "connections": [{"devices": ids, "type": "p2p", **connection}],
        "partitions": [{"name": "Partition0", "devices": [*devices]}],
    }


def test_standin_n10_two_devices(qairt_tools, install, runtime_of) -> None:
    path = qairt_tools.write("tensor_slicing.json", partition({"deviceId": 0}, {"deviceId": 1}))
    folder = qairt_tools.program(options={**OPTIONS, "compiler_mdp_load_partition_config": path})
    session = runtime_of(install(devices="ultra")).session(folder, (0, 1))
    np.testing.assert_allclose(session.step([3], 0), Decoder().logits([3]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (partition({"deviceId": 0, "numCores": 4}, {"deviceId": 1, "numCores": 4}), "numCores is not a key here"),
        (partition({"deviceId": 0}, {"deviceId": 2}), "contiguous from 0"),
        (partition({"deviceId": 0}, {"deviceId": 1}, type="usb"), "p2p or host"),
        (partition({"deviceId": 0}, devices=[0, 1]), "unknown devices"),
        ({"partitions": 1}, "is not a partition file"),
    ],
)
def test_standin_n10_refuses(content, message, converted) -> None:
    path = converted.write("tensor_slicing.json", content)
    refuses(converted, message, options={**OPTIONS, "compiler_mdp_load_partition_config": path})


def test_standin_n10_missing_file(converted) -> None:
    refuses(converted, "no such file", options={**OPTIONS, "compiler_mdp_load_partition_config": "nowhere.json"})


# --- N11 and N12: output ----------------------------------------------------------------------------------------------


def test_standin_n11_program_runs_and_names_are_as_given(qairt_tools, tmp_path, runtime) -> None:
    folder = qairt_tools.program()
    assert sorted(path.name for path in folder.iterdir()) == ["programqpc.bin", "qnngraph.serialized.bin"]
    first = (folder / "programqpc.bin").read_bytes()
    assert qairt_tools.generate(binary_file="x.bin").code == 0
    assert (folder / "x.bin.bin").is_file(), "the extension is always appended"
    assert (folder / "programqpc.bin").read_bytes() == first, "equal input gives equal bytes"

    session = runtime.session(folder)
    assert [*session.index] == ["input_ids", "position_ids", "past_key_0", "logits", "past_key_0_RetainedState"]
    prompt = [3, 1, 4, 1, 5, 9]
    session.step(prompt[:4], 0)
    last = session.step(prompt[4:], 4, width=4)
    np.testing.assert_allclose(last, Decoder().logits(prompt), rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(session.step([2], 6), Decoder().logits([*prompt, 2]), rtol=2e-2, atol=2e-2)


def test_standin_n11_two_equal_configurations_cannot_be_told_apart(qairt_tools) -> None:
    same = ("int64", "(1, 4), (1, 4)")
    assert qairt_tools.convert(config=io_config({"input_ids": same, "position_ids": same})).code == 0
    refuses(qairt_tools, "No input that uniquely identifies specialization")


def test_standin_n11_needs_folder_and_dlc(converted, tmp_path) -> None:
    refuses(converted, "no such folder", output_dir=str(tmp_path / "missing"))
    refuses(converted, "--dlc_path", "no such file", dlc_path=str(tmp_path / "missing.dlc"))
    refuses(converted, "cannot read DLC", dlc_path=converted.write("broken.dlc", "text"))


def test_standin_n11_refuses_a_dlc_of_another_backend(qairt_tools) -> None:
    arguments = qairt_tools.converter_arguments()
    arguments[arguments.index("AIC")] = "HTP"
    assert qairt_tools.run_converter(arguments).code == 0
    refuses(qairt_tools, "made for HTP")


def test_standin_n11_bfloat16_is_refused_for_the_hardware(qairt_tools) -> None:
    state = {"past_key.0": ("bfloat16", "(1, 2, 16, 4)")}
    outputs = {"past_key.0_RetainedState": ("bfloat16", None)}
    assert qairt_tools.convert(config=io_config(state, outputs)).code == 0
    refuses(qairt_tools, "bfloat16")
    model: onnx.ModelProto = Decoder(element_type=TensorProto.BFLOAT16).model()
    assert qairt_tools.convert(config=io_config(state, outputs), model=model).code == 0
    refuses(qairt_tools, "bfloat16")


def test_standin_n12_suffixed_program(converted, monkeypatch) -> None:
    monkeypatch.setenv(SUFFIX_VARIABLE, "1")
    outcome = converted.generate()
    assert outcome.code == 0
    assert not outcome.program.exists()
    assert (outcome.folder / "programqpc_backend.bin").is_file()


def test_standin_generator_faults(converted, monkeypatch) -> None:
    def run(fault: ProcessFault) -> int:
        for name, value in fault_environment(generator=fault).items():
            monkeypatch.setenv(name, value)
        return converted.generate().code

    assert run(ProcessFault(exit_code=7, stderr="text")) == 7
    assert run(ProcessFault(exit_code=0, truncate_output=10)) == 0
    assert Path(converted.path("qpc/programqpc.bin")).stat().st_size == 10
    assert run(ProcessFault(device_memory_bytes=10)) == 1


def test_standin_generator_runs_as_a_program_and_logs(converted) -> None:
    arguments = converted.generator_arguments()
    outcome = converted.in_subprocess(converted.sdk.layout.generator, arguments)
    assert outcome.code == 0, outcome.stderr
    run = converted.sdk.invocations("qnn-context-binary-generator")[-1]
    assert list(run.argv) == arguments
    assert run.env["LD_LIBRARY_PATH"] == str(converted.sdk.layout.libraries)
    assert json.loads(run.read[Path(converted.path("qnn_compile_backend.json"))] or "") == OPTIONS


# --- N13 and the tree -------------------------------------------------------------------------------------------------


def test_standin_n13_description(tmp_path) -> None:
    def text(**keywords: Any) -> str:
        return install_standin(
            tmp_path / f"sdk{len([*tmp_path.iterdir()])}", **keywords
        ).layout.description_file.read_text()

    good = yaml.safe_load(text())
    assert good["version"] == "2.37.1.250807"
    assert all(isinstance(value, str) for value in good.values())
    assert yaml.safe_load(text(description="no version")) == {"product": "QAIRT"}
    assert isinstance(yaml.safe_load(text(description="list")), list)
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text(description="corrupt"))


@pytest.mark.parametrize("part", ["converter", "generator", "backend", "extensions", "yaml"])
def test_standin_each_part_can_be_missing(part, tmp_path) -> None:
    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    whole = install_standin(tmp_path / "whole").root
    less = install_standin(tmp_path / "less", without={part}).root
    assert len(files(whole) - files(less)) == 1


def test_standin_refuses_unknown_parts(tmp_path) -> None:
    with pytest.raises(ValueError, match="Unknown parts"):
        install_standin(tmp_path / "sdk", without={"runtime"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown profile"):
        install_standin(tmp_path / "sdk", profile="9")  # type: ignore[arg-type]
