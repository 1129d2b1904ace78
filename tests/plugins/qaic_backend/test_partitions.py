"""Programs over several devices: partition files of ours and of users, on the stand-in."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from qaic_backend.compiler.partitions import read_user_file, stages
from qeff_framework.errors import CompileError, OptionError
from tests.plugins.qaic_backend.sessions import compile_program, continuation, open_session

PROMPT = [5, 17, 99, 23, 42, 7]


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        (8, 4, [2, 2, 2, 2]),
        (7, 2, [4, 3]),
        (5, 3, [2, 2, 1]),
        (10, 4, [2, 3, 3, 2]),
        (11, 4, [3, 3, 3, 2]),
        (13, 5, [2, 3, 3, 3, 2]),
        (4, 1, [4]),
    ],
)
def test_layers_are_divided_as_the_contract_says(layers, count, expected) -> None:
    assert stages(layers, count) == expected
    assert sum(expected) == layers


def test_standin_pipeline_with_tensor_slicing_in_each_stage(standin, llama_export, llama_program, tmp_path) -> None:
    sdk = standin(devices="ultra")
    one = open_session(llama_program)
    expected = continuation(one, [PROMPT], chunk=4, new_tokens=6)
    one.close()
    compiled = compile_program(llama_export, tmp_path / "program", num_devices=4, mdp_num_partitions=2)
    partitions = json.loads(sdk.invocations()[-1].text_of("-mdp-load-partition-config"))["partitions"]
    assert "-mdp-load-partition-config=mdp_disagg_4d_2p.json" in compiled.program["arguments"]
    assert [[device["deviceId"] for device in item["devices"]] for item in partitions] == [[0, 1], [2, 3]]
    # One layer each: its norms, its cache, and in the last stage the output layer.
    for item in partitions:
        assert sum("CustomRMSNorm" in name for name in item["nodeList"]) >= 2
        assert sum(name.endswith("/result") and "CtxScatter" in name for name in item["nodeList"]) == 2
    session = open_session(compiled)
    assert [qid for qid, used in sdk.nsps_in_use().items() if used] == [0, 1, 2, 3]
    assert continuation(session, [PROMPT], chunk=4, new_tokens=6) == expected
    session.close()


def test_standin_layers_as_sub_functions(standin, llama_export, tmp_path) -> None:
    standin(profile="1.22", devices="ultra")
    results = []
    for name, options in {"flat": {}, "functions": {"sub_functions": True, "mdp_num_partitions": 2}}.items():
        compiled = compile_program(llama_export, tmp_path / name, num_devices=2, **options)
        session = open_session(compiled)
        results.append(continuation(session, [PROMPT], chunk=4, new_tokens=6))
        session.close()
    assert results[0] == results[1]
    assert "-sub-functions" in compiled.program["arguments"]
    model = onnx.load(tmp_path / "functions" / "model.onnx", load_external_data=False)
    layers = ["model.layers.0", "model.layers.1"]
    assert [(node.op_type, node.name) for node in model.graph.node if node.domain == "qeff.layers"] == [
        ("Layer0", name) for name in layers
    ]
    stages = json.loads((tmp_path / "functions" / "mdp_disagg_2d_2p.json").read_text())["partitions"]
    assert [[name for name in layers if name in stage["nodeList"]] for stage in stages] == [[name] for name in layers]


def test_more_stages_than_layers_are_refused(standin, llama_export, tmp_path) -> None:
    sdk = standin(devices="ultra")
    with pytest.raises(OptionError, match="mdp_num_partitions=4 is more than the 2 layers"):
        compile_program(llama_export, tmp_path / "program", num_devices=4, mdp_num_partitions=4)
    with pytest.raises(ValueError, match="mdp_num_partitions=3 must divide num_devices=4"):
        compile_program(llama_export, tmp_path / "other", num_devices=4, mdp_num_partitions=3)
    assert sdk.invocations("qaic-compile") == []


def partition_file(path, *, devices=(0, 1), **changes):
    document = {
        "connections": [{"devices": list(devices), "type": "p2p"}],
        "partitions": [{"name": "all", "devices": [{"deviceId": number, "numCores": 2} for number in devices]}],
        **changes,
    }
    path.write_text(json.dumps(document))
    return path


def test_standin_partition_file_of_the_user(standin, llama_export, tmp_path) -> None:
    sdk = standin(devices="ultra")
    own = partition_file(tmp_path / "own.json")
    compiled = compile_program(llama_export, tmp_path / "program", num_devices=2, mdp_load_partition_config=own)
    assert "-mdp-load-partition-config=mdp_user.json" in compiled.program["arguments"]
    assert (compiled.directory / "mdp_user.json").read_bytes() == own.read_bytes()
    session = open_session(compiled)
    assert sum(used > 0 for used in sdk.nsps_in_use().values()) == 2
    assert np.isfinite(session.run({"input_ids": np.array([[7]]), "position_ids": np.array([[0]])})["logits"]).all()
    session.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": (0, 2)}, r"deviceIds are \[0, 2\]"),
        ({"devices": (0, 1, 2)}, "has 3 devices, and num_devices is 2"),
        ({"partitions": []}, "a list 'partitions' with at least one entry"),
        ({"partitions": [{"name": "x", "devices": []}]}, "a list 'devices' with at least one entry"),
        ({"connections": [{"devices": [0, 5], "type": "p2p"}]}, r"names the devices \[0, 5\]"),
        ({"connections": [{"devices": [0, 1], "type": "pcie"}]}, "p2p or host, not 'pcie'"),
    ],
)
def test_wrong_partition_files_are_refused_before_the_compiler(changes, message, tmp_path) -> None:
    path = partition_file(tmp_path / "own.json", **changes)
    with pytest.raises(OptionError, match=message):
        read_user_file(path, 2)


def test_a_partition_of_nodes_that_the_program_has_not_is_refused(standin, llama_export, tmp_path) -> None:
    """The compiler would ignore the list."""
    sdk = standin(devices="ultra")
    stages = [
        {"name": f"stage{number}", "devices": [{"deviceId": number}], "nodeList": [node]}
        for number, node in enumerate(["node_MatMul_0", "CtxScater_2"])
    ]
    own = partition_file(tmp_path / "own.json", partitions=stages)
    with pytest.raises(OptionError, match=r"no node of stage0 is one of the program \(node_MatMul_0 first"):
        compile_program(llama_export, tmp_path / "program", num_devices=2, mdp_load_partition_config=own)
    assert sdk.invocations("qaic-compile") == []


def test_a_partition_file_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(OptionError, match=r"missing\.json cannot be read"):
        read_user_file(tmp_path / "missing.json", 1)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_the_compiler(standin, llama_export, tmp_path) -> None:
    sdk = standin()
    with pytest.raises(
        CompileError, match=r"retained state of .* on each of 1 devices, which have .* GiB.*num_devices"
    ):
        compile_program(llama_export, tmp_path / "large", dry_run=True, batch_size=50_000_000)
    with pytest.raises(CompileError, match="which have 1e-05 GiB"):
        compile_program(llama_export, tmp_path / "small", device_memory_gb=0.00001)
    assert sdk.invocations("qaic-compile") == []


def test_weights_that_cannot_fit_are_refused_before_there_is_a_graph(standin) -> None:
    from qaic_backend import QaicOptions
    from qeff_framework import get_backend

    backend, numbers = get_backend("qaic"), 70_553_706_496
    standin(devices="ultra")
    with pytest.raises(
        CompileError, match=r"weights of 131\.42 GiB make 32\.85 GiB on each of 4 devices, which have 32 GiB"
    ):
        backend.check_weights(QaicOptions(num_devices=4, device_memory_gb=32.0), numbers)
    for fits in ({"mxfp6_matmul": True}, {"num_layers_per_program": 20}, {"num_devices": 8}):
        backend.check_weights(QaicOptions(**{"num_devices": 4, "device_memory_gb": 32.0, **fits}), numbers)


def test_the_estimate_agrees_with_the_standins(standin, llama_export, tmp_path, monkeypatch) -> None:
    """The least memory that the stand-in's compiler takes is what the backend estimates, for each kind of storage."""
    import onnx_ir

    from qaic_backend import QaicOptions
    from qaic_backend.compiler.memory import state_bytes, weight_bytes
    from tests.sdk_standins.qaic import ProcessFault, fault_environment

    standin()
    for number, small in enumerate(({}, {"mxfp6_matmul": True, "mxint8_kv_cache": True}, {"convert_to_fp16": False})):
        name = str(number)
        compiled = compile_program(llama_export, tmp_path / name, **small)
        options = QaicOptions(num_cores=2, **small)
        model = onnx_ir.load(compiled.directory / "model.onnx")
        estimate = weight_bytes(model, options) + state_bytes(llama_export, compiled.specializations, options)
        with monkeypatch.context() as faults:
            faults.setenv(*fault_environment(compile=ProcessFault(device_memory_bytes=int(estimate) + 64)).popitem())
            compile_program(llama_export, tmp_path / f"{name} fits", **small)
            faults.setenv(*fault_environment(compile=ProcessFault(device_memory_bytes=int(estimate * 0.98))).popitem())
            with pytest.raises(CompileError, match="more device memory"):
                compile_program(llama_export, tmp_path / f"{name} does not", **small)
