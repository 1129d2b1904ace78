"""Rows C20 to C25: what the stand-in `qaic-compile` writes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np
import onnx
import yaml
from tests.sdk_standins.graphs import Decoder, parse_graph
from tests.sdk_standins.harness import KV_FLOAT16, PREFILL_AND_DECODE, Compiler
from tests.sdk_standins.qaic import ProcessFault, fault_environment
from tests.sdk_standins.qaic.qaic_standin.program_description import ProgramDescription
from tests.sdk_standins.qaic.qaic_standin.qpc_file import CONSTANTS, NETWORK, NETWORK_DESCRIPTION, open_qpc


def test_c20_partition_dump_can_be_loaded_again(compiler: Compiler) -> None:
    dump = compiler.folder / "dump.json"
    compiler.ok(compiler.decoder_arguments(f"-mdp-dump-partition-config={dump}"))

    document = json.loads(dump.read_text())
    names = document["partitions"][0]["nodeList"]
    assert "embedding" in names
    assert "lm_head" in names
    # CtxScatter is inlined under the name of its call; what depends on constants only is folded away.
    assert any(name.startswith("scatter/") for name in names)
    assert "scatter" not in names
    compiler.ok(compiler.decoder_arguments(mdp=document))


def test_c20_folding(compiler: Compiler) -> None:
    model = parse_graph(
        "g (float[1] x) => (float[1] y) { c = Add (a, a)  d = Identity (c)  y = Add (x, d) }", a=np.ones(1, np.float32)
    )
    for node, name in zip(model.graph.node, ("folded", "identity", "kept"), strict=True):
        node.name = name
    dump = compiler.folder / "dump.json"
    compiler.ok([*compiler.arguments(model), f"-mdp-dump-partition-config={dump}"])

    assert json.loads(dump.read_text())["partitions"][0]["nodeList"] == ["identity", "kept"]


def test_c21_device_memory(compiler: Compiler) -> None:
    # 2 * 88 weights and 128 state elements of two bytes, and the integer constants.
    fault = fault_environment(compile=ProcessFault(device_memory_bytes=400))
    outcome = compiler.in_subprocess(compiler.decoder_arguments(), fault)
    assert outcome.code == 1
    assert "Not enough device memory" in outcome.stderr
    assert not outcome.program.exists()

    mdp = {"partitions": [{"name": "P", "devices": [{"deviceId": d, "numCores": 4} for d in range(4)]}]}
    assert compiler.in_subprocess(compiler.decoder_arguments(mdp=mdp), fault).code == 0


def test_c22_writes_the_program_and_removes_work_files(compiler: Compiler) -> None:
    folder = compiler.ok(compiler.decoder_arguments())

    assert [path.name for path in folder.iterdir()] == ["programqpc.bin"]


def test_c22_overwrites_an_existing_folder(compiler: Compiler) -> None:
    folder = compiler.folder / "qpc"
    folder.mkdir()
    (folder / "programqpc.bin").write_bytes(b"old")
    (folder / "notes.txt").write_text("other")

    compiler.ok(compiler.decoder_arguments())

    assert (folder / "programqpc.bin").stat().st_size > 3


def test_c22_parent_of_the_folder_must_exist(compiler: Compiler) -> None:
    arguments = [a.replace("/qpc", "/missing/qpc") for a in compiler.decoder_arguments()]
    compiler.fails(arguments, "Cannot write to -aic-binary-dir")


def test_c23_container(compiler: Compiler) -> None:
    arguments = compiler.decoder_arguments("-qpc-crc", node_precision={"FP32NodeInstanceNames": ["logits"]})
    path = compiler.ok(arguments) / "programqpc.bin"

    data = path.read_bytes()
    magic, major, minor, _, size, base = struct.unpack_from("<IBBHQQ", data)
    assert (magic, major, minor, size) == (0x00A1CD7C, 0, 1, len(data))
    assert base % 8 == 0
    opened = open_qpc(path)
    assert {"networkdesc.bin", "constantsdesc.bin", "network.elf", "constants.bin", "network.elf.crc"} <= set(
        opened.segments
    )
    assert all(segment.offset % 8 == 0 for segment in opened.segments.values())
    program = ProgramDescription.from_json(opened.read(NETWORK_DESCRIPTION))
    assert (program.target, program.cores_per_device, program.device_count) == ("ai100", (4,), 1)
    assert program.retained_pairs == (("past_key.0", "past_key.0_RetainedState"),)
    assert {b.name: b.precision for b in program.bindings if b.name in KV_FLOAT16} == KV_FLOAT16
    assert program.node_precision == {"FP32NodeInstanceNames": ["logits"]}
    assert [entry.dims[0] for entry in program.entries] == [(1, 4), (1, 1)]
    assert onnx.load_model_from_string(opened.read(NETWORK)).graph.name == "decoder"


def test_c23_weights_are_in_the_constants_segment(compiler: Compiler) -> None:
    path = Decoder(vocab=200).save(compiler.folder / "external.onnx", external=True)
    opened = open_qpc(compiler.ok(compiler.arguments(path, specializations=PREFILL_AND_DECODE)) / "programqpc.bin")

    # embed and head: 200 * 8 float32 each
    assert opened.segments[CONSTANTS].size == 2 * 200 * 8 * 4
    assert opened.segments[NETWORK].size < 10_000


def test_c24_failure_leaves_a_folder_without_program(compiler: Compiler) -> None:
    folder = compiler.ok(compiler.decoder_arguments())
    wrong = compiler.decoder_arguments(specializations=[PREFILL_AND_DECODE[0]] * 2)

    assert compiler(wrong).code == 1

    assert folder.is_dir()
    assert not (folder / "programqpc.bin").exists()
    assert list(folder.iterdir()), "a failed run leaves work files for the caller to clean up"


def test_c25_deprecated_name(compiler: Compiler, compiler_for: Callable[[str], Compiler]) -> None:
    shim = compiler.sdk.root / "exec" / "qaic-exec"
    outcome = compiler.in_subprocess(compiler.decoder_arguments(), tool=shim)
    assert outcome.code == 0
    assert "qaic-exec is deprecated" in outcome.stderr
    assert compiler.in_subprocess(["-no-such-option"], tool=shim).code == 1
    assert not (compiler_for("1.22").sdk.root / "exec" / "qaic-exec").exists()
    legacy = compiler_for("legacy").in_subprocess(["-h"])
    assert legacy.code == 0
    assert "deprecated" not in legacy.stderr


def test_custom_io_template(compiler: Compiler) -> None:
    template = compiler.folder / "template.yaml"
    compiler.ok(compiler.decoder_arguments(f"-dump-custom-IO-config-template={template}"))

    assert yaml.safe_load(template.read_text()) == [
        {"IOName": name, "Precision": "float"} for name in ("past_key.0", "logits", "past_key.0_RetainedState")
    ]
