"""The stand-in `qairt-converter`: rows N1 to N5 of the contract."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from tests.sdk_standins.graphs import Decoder
from tests.sdk_standins.qairt import NOISE_VARIABLE, ProcessFault, fault_environment, install_standin
from tests.sdk_standins.qairt_harness import GRAPHS, Tools, io_config


def described(folder: Path, name: str = "model.dlc") -> dict[str, Any]:
    with zipfile.ZipFile(folder / name) as archive:
        return dict(json.loads(archive.read("dlc.json")))


# --- N1: options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
        (["--confi", "x"], "unrecognized arguments"),
        (["--target_backend", "AIC"], "given twice"),
        (["--onnx_override_batch", "2"], "does not model"),
    ],
)
def test_standin_n1_refuses_options_with_a_usage_line(change, message, qairt_tools) -> None:
    outcome = qairt_tools.convert(*change)
    assert outcome.code == 2
    assert outcome.stderr.startswith("usage: qairt-converter")
    assert message in outcome.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--target_backend", "aic", "invalid choice: 'aic'"),
        ("--float_bitwidth", "8", "invalid choice: 8"),
        ("--float_bias_bitwidth", "x", "invalid int value"),
    ],
)
def test_standin_n1_refuses_values_with_exit_code_2(option, value, message, qairt_tools) -> None:
    arguments = qairt_tools.converter_arguments()
    arguments[arguments.index(option) + 1] = value
    outcome = qairt_tools.run_converter(arguments)
    assert outcome.code == 2
    assert message in outcome.stderr


def test_standin_n1_needs_the_input_network(qairt_tools) -> None:
    outcome = qairt_tools.run_converter(["--target_backend", "AIC"])
    assert outcome.code == 2
    assert "--input_network" in outcome.stderr


def test_standin_n1_needs_the_packages_of_the_sdk(qairt_tools) -> None:
    outcome = qairt_tools.in_subprocess(
        qairt_tools.sdk.layout.converter, qairt_tools.converter_arguments(), PYTHONPATH=""
    )
    assert outcome.code == 1
    assert "ModuleNotFoundError: No module named 'qti'" in outcome.stderr


# --- N2: files --------------------------------------------------------------------------------------------------------


def test_standin_n2_refuses_missing_and_broken_files(qairt_tools) -> None:
    arguments = qairt_tools.converter_arguments()
    for position, value, message in (
        (1, qairt_tools.path("nothing.onnx"), "nothing.onnx does not exist"),
        (1, qairt_tools.write("garbage.onnx", "no protobuf"), "Unable to load ONNX model"),
        (3, qairt_tools.path("nowhere/model.dlc"), "the folder of --output_path"),
        (5, qairt_tools.path("nothing.yaml"), "nothing.yaml does not exist"),
    ):
        changed = [*arguments]
        changed[position] = value
        outcome = qairt_tools.run_converter(changed)
        assert outcome.code == 1, outcome.stderr
        assert message in outcome.stderr


def test_standin_n2_failure_removes_an_earlier_dlc(qairt_tools, tmp_path) -> None:
    assert qairt_tools.convert().code == 0
    assert (tmp_path / "model.dlc").exists()
    assert qairt_tools.convert(config=io_config({"input_ids": None})).code == 1
    assert not (tmp_path / "model.dlc").exists()


def test_standin_n2_refuses_operators_without_definition(qairt_tools) -> None:
    model = Decoder().model()
    del model.functions[:]
    outcome = qairt_tools.convert(model=model)
    assert outcome.code == 1
    assert "scatter" in outcome.stderr


# --- N3 and N4: the IO file -------------------------------------------------------------------------------------------

STATE = "past_key.0_RetainedState"


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"input_ids": None}, {}, "lacks the inputs input_ids"),
        ({"nobody": ("int64", "(1, 1)")}, {}, "'nobody'"),
        ({}, {"nobody": ("float32", None)}, "'nobody'"),
        ({"input_ids": ("int64", None)}, {}, "Shape of 'input_ids' must be a text"),
        ({"input_ids": ("int64", "1, 4")}, {}, "Shape of 'input_ids' must be a text"),
        ({"input_ids": ("int64", "(1, 4)(1, 1)")}, {}, "Shape of 'input_ids' must be a text"),
        ({"input_ids": ("int64", "(1, -4)")}, {}, "Shape of 'input_ids' must be a text"),
        ({"input_ids": ("int64", "(1, 0)")}, {}, "empty dimension"),
        ({"input_ids": ("int64", "(1, 4, 1)")}, {}, "rank 3"),
        ({"input_ids": ("int64", "(1, 4), (1, 1), (1, 2)")}, {}, "at most 2 configurations"),
        ({"past_key.0": ("float16", "(1, 3, 16, 4)")}, {}, "differs from the model's dimension 2"),
        ({"position_ids": ("int64", "(1, 5), (1, 1)")}, {}, "symbol 'seq_len' is 4 and, in 'position_ids', 5"),
        ({"input_ids": ("mxint8", "(1, 4), (1, 1)")}, {}, "DataType 'mxint8' of 'input_ids' is unknown"),
        ({"input_ids": ("int32", "(1, 4), (1, 1)")}, {}, "does not fit the model's int64"),
        ({}, {"logits": ("int64", None)}, "does not fit the model's float32"),
        ({}, {"logits": ("float32", "(1, 1, 11)")}, "takes DataType and QuantParams"),
        ({"past_key.0": ("float32", "(1, 2, 16, 4)")}, {}, "a state has one DataType"),
        ({}, {STATE: ("float32", None)}, "a state has one DataType"),
    ],
)
def test_standin_n3_n4_refuses_io(inputs, outputs, message, qairt_tools) -> None:
    outcome = qairt_tools.convert(config=io_config(inputs, outputs))
    assert outcome.code == 1, outcome.stderr
    assert message in outcome.stderr
    assert not Path(qairt_tools.path("model.dlc")).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**io_config(), "More": []}, "must have exactly the keys"),
        ({"Input Tensor Configuration": []}, "must have exactly the keys"),
        ([], "must have exactly the keys"),
        ("Input: [", "custom_io_config.yaml"),
        ({**io_config(), "Output Tensor Configuration": [{"Name": "logits", "Type": "x"}]}, "every item"),
    ],
)
def test_standin_n3_refuses_other_documents(content, message, qairt_tools) -> None:
    outcome = qairt_tools.convert(config=content)
    assert outcome.code == 1
    assert message in outcome.stderr


def test_standin_n3_bfloat16_is_a_word_of_newer_profiles(tmp_path) -> None:
    model = Decoder(element_type=TensorProto.BFLOAT16).model()
    config = io_config({"past_key.0": ("bfloat16", "(1, 2, 16, 4)")}, {STATE: ("bfloat16", None)})
    for profile, code in (("2.34", 1), ("2.37", 0)):
        (tmp_path / profile).mkdir()
        tools = Tools(install_standin(tmp_path / f"sdk {profile}", profile=profile), tmp_path / profile)  # type: ignore[arg-type]
        outcome = tools.convert(config=config, model=model)
        assert outcome.code == code, outcome.stderr


def test_standin_shapes_without_io_file(qairt_tools, tmp_path) -> None:
    arguments = qairt_tools.converter_arguments("--onnx_define_symbol", "batch_size", "1", "--onnx_define_symbol")
    both = qairt_tools.run_converter([*arguments, "seq_len", "4"])
    assert "not from both" in both.stderr
    del arguments[4:6]
    unbound = qairt_tools.run_converter([*arguments, "seq_len", "4"])
    assert "Symbol 'ctx_len'" in unbound.stderr
    done = qairt_tools.run_converter(
        [*arguments, "seq_len", "4", "--source_model_input_shape", "past_key.0", "1,2,16,4"]
    )
    assert done.code == 0, done.stderr
    (graph,) = described(tmp_path)["graphs"]
    assert graph == {"name": "model", "symbols": {"batch_size": 1, "seq_len": 4, "ctx_len": 16}}


def test_standin_integers_are_preserved_or_named(qairt_tools) -> None:
    arguments = qairt_tools.converter_arguments()
    del arguments[4:6]
    arguments.remove("--preserve_io_datatype")
    symbols = ["--source_model_input_shape", "past_key.0", "1,2,16,4", "--onnx_define_symbol", "seq_len", "4"]
    refused = qairt_tools.run_converter([*arguments, *symbols])
    assert "'input_ids' is int64" in refused.stderr
    done = qairt_tools.run_converter([*arguments, *symbols, "--preserve_io_datatype", "input_ids", "position_ids"])
    assert done.code == 0, done.stderr
    unknown = qairt_tools.run_converter([*arguments, *symbols, "--preserve_io_datatype", "nobody"])
    assert "nobody" in unknown.stderr


# --- N5: graph names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "output", "names"),
    [
        ("(1, 4), (1, 1)", "model.dlc", GRAPHS),
        ("(1, 4)", "model.dlc", ["model"]),
        ("(1, 4), (1, 1)", "other.dlc", ["other_configuration_1", "other_configuration_2"]),
    ],
)
def test_standin_n5_graph_names_come_from_the_files_stem(shape, output, names, qairt_tools, tmp_path) -> None:
    config = io_config({"input_ids": ("int64", shape), "position_ids": ("int64", shape)})
    outcome = qairt_tools.convert(config=config, output=output)
    assert outcome.code == 0, outcome.stderr
    assert [graph["name"] for graph in described(tmp_path, output)["graphs"]] == names


def test_standin_tensor_names_become_identifiers(qairt_tools, tmp_path) -> None:
    assert qairt_tools.convert().code == 0
    assert [tensor["name"] for tensor in described(tmp_path)["tensors"]] == [
        "input_ids",
        "position_ids",
        "past_key_0",
        "logits",
        "past_key_0_RetainedState",
    ]


# --- runs, faults, log ------------------------------------------------------------------------------------------------


def test_standin_converter_runs_as_a_program_and_logs(qairt_tools, tmp_path) -> None:
    arguments = qairt_tools.converter_arguments("--onnx_defer_loading")
    outcome = qairt_tools.in_subprocess(qairt_tools.sdk.layout.converter, arguments, **{NOISE_VARIABLE: "1"})
    assert outcome.code == 0, outcome.stderr
    assert "noise" in outcome.stderr
    run = qairt_tools.sdk.invocations("qairt-converter")[-1]
    assert list(run.argv) == arguments
    assert run.exit_code == 0
    assert "(1, 4), (1, 1)" in (run.read[tmp_path / "custom_io_config.yaml"] or "")
    assert run.written == (tmp_path / "model.dlc",)
    first = (tmp_path / "model.dlc").read_bytes()
    assert qairt_tools.convert("--onnx_defer_loading").code == 0
    assert (tmp_path / "model.dlc").read_bytes() == first


def test_standin_converter_faults(qairt_tools, tmp_path, monkeypatch) -> None:
    def run(fault: ProcessFault) -> int:
        for name, value in fault_environment(converter=fault).items():
            monkeypatch.setenv(name, value)
        return qairt_tools.convert().code

    assert run(ProcessFault(exit_code=7, stderr="text")) == 7
    assert run(ProcessFault(stderr="text")) == 1
    assert run(ProcessFault(exit_code=3, truncate_output=10)) == 3
    assert (tmp_path / "model.dlc").stat().st_size == 10
    killed = qairt_tools.in_subprocess(
        qairt_tools.sdk.layout.converter,
        qairt_tools.converter_arguments(),
        **fault_environment(converter=ProcessFault(kill=True)),
    )
    assert killed.code == -9
    assert qairt_tools.sdk.invocations()[-1].exit_code == -9


def test_standin_model_with_external_weights(qairt_tools, tmp_path) -> None:
    Decoder().save(tmp_path / "model.onnx", external=True)
    arguments = qairt_tools.converter_arguments()
    onnx_file = tmp_path / "external" / "model.onnx"
    onnx_file.parent.mkdir()
    Decoder().save(onnx_file, external=True)
    arguments[1] = str(onnx_file)
    assert qairt_tools.run_converter(arguments).code == 0
    with zipfile.ZipFile(tmp_path / "model.dlc") as archive:
        model = onnx.ModelProto.FromString(archive.read("model.onnx"))
    assert {"embed", "head"} <= {tensor.name for tensor in model.graph.initializer}
