"""Rows R1 to R5 and R16: modules, object rules, devices and their accounting."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sdk_standins.harness import Compiler, Runtime
from tests.sdk_standins.qaic import CallFault, StandinDevice, StandinSdk, fault_environment

Install = Callable[..., StandinSdk]
RuntimeOf = Callable[[StandinSdk], Runtime]


@pytest.fixture
def qpc(compiler: Compiler) -> Path:
    """A decoder for one device with four cores."""
    return compiler.ok(compiler.decoder_arguments())


@pytest.fixture
def sliced_qpc(compiler: Compiler) -> Path:
    """A decoder for two devices with four cores each."""
    mdp = {
        "connections": [{"devices": [0, 1], "type": "p2p"}],
        "partitions": [{"name": "Partition0", "devices": [{"deviceId": d, "numCores": 4} for d in (0, 1)]}],
    }
    return compiler.ok(compiler.decoder_arguments(mdp=mdp))


def set_faults(monkeypatch: pytest.MonkeyPatch, **calls: CallFault) -> None:
    for name, value in fault_environment(runtime={k.replace("_", "."): v for k, v in calls.items()}).items():
        monkeypatch.setenv(name, value)


# R1


def test_r1_importable_after_the_path_append_only(sdk: StandinSdk) -> None:
    with sdk.clean_imports():
        for name in ("qaicrt", "QAicApi_pb2"):
            with pytest.raises(ImportError):
                importlib.import_module(name)
        sys.path.append(str(sdk.module_folders[0]))
        importlib.invalidate_caches()
        assert importlib.import_module("qaicrt").Qpc
        with pytest.raises(ImportError):
            importlib.import_module("QAicApi_pb2")
    assert "qaicrt" not in sys.modules


def test_r1_missing_module(install: Install) -> None:
    sdk = install()
    (sdk.module_folders[1] / "QAicApi_pb2.py").unlink()
    with pytest.raises(ImportError), sdk.runtime():
        pass


def test_r1_trees_do_not_share_anything(install: Install, runtime_of: RuntimeOf, qpc: Path) -> None:
    one, two = install(), install(devices="ultra", profile="1.22")
    with one.runtime() as (first, _):
        pass
    with two.runtime() as (second, _):
        pass

    assert len(first.Util().getDeviceIds()[1]) == 1
    assert len(second.Util().getDeviceIds()[1]) == 4
    assert not hasattr(first, "ProfilingHandle")
    assert hasattr(second, "ProfilingHandle")


# R2


@pytest.mark.parametrize(
    "call",
    [
        lambda rt, qpc: rt.Qpc(qpc),
        lambda rt, qpc: rt.QIDList((0,)),
        lambda rt, qpc: rt.QIDList(["0"]),
        lambda rt, qpc: rt.QIDList([np.int64(0)]),
        lambda rt, qpc: rt.Context([0]),
        lambda rt, qpc: rt.Queue(rt.Context(), "0"),
        lambda rt, qpc: rt.QBuffer(bytearray(4)),
        lambda rt, qpc: rt.QBuffer(np.zeros(4)),
        lambda rt, qpc: rt.BufferDimensionsVecRef([[4, [1]]]),
        lambda rt, qpc: rt.BufferDimensionsVecRef([(4.0, [1])]),
        lambda rt, qpc: rt.BufferDimensionsVecRef([(4, np.array([1]))]),
        lambda rt, qpc: rt.BufferDimensionsVecRef([(4, [np.int64(1)])]),
        lambda rt, qpc: rt.Program(rt.Context(), 0, str(qpc)),
        lambda rt, qpc: rt.Context().setLogLevel(0),
    ],
)
def test_r2_types(runtime: Runtime, qpc: Path, call: Callable[[Any, Path], object]) -> None:
    with pytest.raises(TypeError, match="incompatible argument"):
        call(runtime.rt, qpc)


def test_r2_buffers_and_dims(runtime: Runtime) -> None:
    rt = runtime.rt
    buffer = rt.QBuffer(b"abcd")
    assert (buffer.size, bytes(buffer)) == (4, b"abcd")
    dims = rt.BufferDimensionsVecRef([(8, [1, 4]), (2, (3,))])
    dims[1] = (4, (0,))
    assert [dims[0], dims[1], len(dims)] == [(8, [1, 4]), (4, [0]), 2]


def test_r2_status_is_not_an_integer(runtime: Runtime) -> None:
    assert runtime.rt.QStatus.QS_SUCCESS != 0
    assert int(runtime.rt.QStatus.QS_DEV_ERROR) == 300


@pytest.mark.parametrize(
    ("profile", "known", "unknown"),
    [
        ("legacy", "SubmitRetryTimeoutMs", "dataPathTimeoutMs"),
        ("1.21", "dataPathTimeoutMs", "numThreads"),
        ("1.22", "dataPathTimeoutMs", "SubmitRetryTimeoutMs"),
    ],
)
def test_r2_program_properties(install: Install, runtime_of: RuntimeOf, profile: str, known: str, unknown: str) -> None:
    properties = runtime_of(install(profile=profile)).rt.QAicProgramProperties()
    setattr(properties, known, 1000)
    with pytest.raises(AttributeError):
        setattr(properties, unknown, 1000)
    with pytest.raises(TypeError):
        setattr(properties, known, "1000")


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF" * 20])
def test_r2_qpc_must_be_complete(runtime: Runtime, tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    if content is not None:
        (folder / "programqpc.bin").write_bytes(content)
    with pytest.raises(RuntimeError, match="Failed to open QPC"):
        runtime.rt.Qpc(str(folder))


def test_r2_truncated_qpc(runtime: Runtime, qpc: Path) -> None:
    data = (qpc / "programqpc.bin").read_bytes()
    (qpc / "programqpc.bin").write_bytes(data[:-64])
    with pytest.raises(RuntimeError, match="truncated"):
        runtime.rt.Qpc(str(qpc))


def test_r2_qpc_is_a_directory(runtime: Runtime, qpc: Path) -> None:
    with pytest.raises(RuntimeError, match="is not a directory"):
        runtime.rt.Qpc(str(qpc / "programqpc.bin"))


# R3


def test_r3_load_before_activate(runtime: Runtime, qpc: Path) -> None:
    rt = runtime.rt
    program = rt.Program(rt.Context(), 0, rt.Qpc(str(qpc)), rt.QAicProgramProperties())
    assert program.activate() == rt.QStatus.QS_INVAL
    assert program.load() == rt.QStatus.QS_SUCCESS
    assert program.load() == rt.QStatus.QS_INVAL
    assert program.activate() == rt.QStatus.QS_SUCCESS
    assert program.unload() == rt.QStatus.QS_BUSY
    assert program.deactivate() == rt.QStatus.QS_SUCCESS
    assert program.deactivate() == rt.QStatus.QS_SUCCESS
    assert program.unload() == rt.QStatus.QS_SUCCESS


def test_r3_exec_object_activates(runtime: Runtime, qpc: Path) -> None:
    rt = runtime.rt
    context = rt.Context()
    program = rt.Program(context, qpcObj=rt.Qpc(str(qpc)))
    assert program.initProperties(rt.QAicProgramProperties()) == rt.QStatus.QS_SUCCESS
    exec_object = rt.ExecObj(context, program)
    assert runtime.sdk.nsps_in_use() == {0: 4}
    del exec_object
    assert program.deactivate() == rt.QStatus.QS_SUCCESS


def test_r3_deactivate_with_a_live_exec_object(runtime: Runtime, qpc: Path) -> None:
    rt = runtime.rt
    session = runtime.session(qpc)
    assert session.program.deactivate() == rt.QStatus.QS_BUSY
    # Nothing runs any more, and the NSPs are still taken until it is done in the right order.
    assert session.exec_object.setData(session.buffers, session.dims) == rt.QStatus.QS_INVAL
    assert session.queue.enqueue(session.exec_object) == rt.QStatus.QS_INVAL
    assert session.exec_object.waitForCompletion() == rt.QStatus.QS_INVAL
    assert session.exec_object.getData()[0] == rt.QStatus.QS_INVAL
    with pytest.raises(RuntimeError, match="being deactivated"):
        rt.ExecObj(session.context, session.program)
    assert runtime.sdk.nsps_in_use() == {0: 4}
    session.deactivate()
    assert runtime.sdk.nsps_in_use() == {0: 0}


def test_r3_life_cycle_is_logged(install: Install, runtime_of: RuntimeOf, qpc: Path) -> None:
    runtime = runtime_of(install())
    session = runtime.session(qpc)
    session.deactivate()
    assert runtime.sdk.runtime_calls() == [
        ("Program.load", [0]),
        ("Program.activate", [0]),
        ("Program.deactivate", [0]),
    ]


# R4


@pytest.mark.parametrize("qids", [[7], [0, 7], [0, 0], []])
def test_r4_unknown_device(runtime: Runtime, qids: list[int]) -> None:
    with pytest.raises(RuntimeError, match=r"Device 7 invalid|Failed to create a context"):
        runtime.rt.Context(runtime.rt.QIDList(qids))


def test_r4_error_device(install: Install, runtime_of: RuntimeOf) -> None:
    rt = runtime_of(install(devices="error")).rt
    with pytest.raises(RuntimeError, match="not ready"):
        rt.Context(rt.QIDList([0]))
    with pytest.raises(RuntimeError, match="Failed to create a context"):
        rt.Context()


def test_r4_allocation_fails_when_cores_are_taken(runtime: Runtime, qpc: Path) -> None:
    rt = runtime.rt
    sessions = [runtime.session(qpc) for _ in range(4)]
    assert runtime.sdk.nsps_in_use() == {0: 16}

    context = rt.Context()
    program = rt.Program(context, 0, rt.Qpc(str(qpc)), rt.QAicProgramProperties())
    assert program.load() == rt.QStatus.QS_SUCCESS
    assert program.activate() == rt.QStatus.QS_NOSPC
    with pytest.raises(RuntimeError, match=r"QAIC_ERROR_NSP_ALLOC_FAILED: Failed to allocate NSP resources"):
        rt.ExecObj(context, program)

    sessions[0].deactivate()
    assert program.activate() == rt.QStatus.QS_SUCCESS
    assert program.deactivate() == rt.QStatus.QS_SUCCESS


def test_r4_fourteen_nsps(install: Install, runtime_of: RuntimeOf, compiler: Compiler) -> None:
    arguments = [a.replace("-aic-num-cores=4", "-aic-num-cores=16") for a in compiler.decoder_arguments()]
    runtime = runtime_of(install(devices="fourteen_nsp"))
    rt = runtime.rt
    program = rt.Program(rt.Context(), 0, rt.Qpc(str(compiler.ok(arguments))), rt.QAicProgramProperties())
    assert program.load() == rt.QStatus.QS_SUCCESS
    assert program.activate() == rt.QStatus.QS_NOSPC


def test_r4_leak_is_visible(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    with pytest.raises(AssertionError, match=r"still in use.*\{0: 4\}"):
        runtime.sdk.assert_released()
    session.deactivate()


def test_r4_dead_process_holds_nothing(runtime: Runtime, qpc: Path) -> None:
    script = (
        "import os, sys; sys.path.append(sys.argv[1]); import qaicrt as rt\n"
        "rt.ExecObj(rt.Context(), p := rt.Program(rt.Context(), qpcObj=rt.Qpc(sys.argv[2])))\n"
        "sys.stdout.write('active\\n'); sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-I", "-c", script, str(runtime.sdk.module_folders[0]), str(qpc)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "active\n"
        assert runtime.sdk.nsps_in_use() == {0: 4}
        process.kill()
        process.wait()
    assert runtime.sdk.nsps_in_use() == {0: 0}


# R5


def test_r5_one_program_on_two_devices(install: Install, runtime_of: RuntimeOf, sliced_qpc: Path) -> None:
    runtime = runtime_of(install(devices="ultra"))
    session = runtime.session(sliced_qpc, [2, 1])
    assert runtime.sdk.nsps_in_use() == {0: 0, 1: 4, 2: 4, 3: 0}
    session.deactivate()
    assert set(runtime.sdk.nsps_in_use().values()) == {0}


@pytest.mark.parametrize(
    ("sliced", "mapping", "device"),
    [
        (True, "", None),
        (True, "", 0),
        (True, "0", None),
        (True, "0:1:2", None),
        (True, "0:0", None),
        (True, "0,1", None),
        (True, "0:9", None),
        (True, "0:1", 0),
        (False, "0", None),
        (False, "0:1", None),
        (False, "", 9),
    ],
)
def test_r5_wrong_device_mapping(
    install: Install,
    runtime_of: RuntimeOf,
    request: pytest.FixtureRequest,
    sliced: bool,
    mapping: str,
    device: int | None,
) -> None:
    rt = runtime_of(install(devices="ultra")).rt
    qpc = request.getfixturevalue("sliced_qpc" if sliced else "qpc")
    properties = rt.QAicProgramProperties()
    properties.devMapping = mapping
    context = rt.Context(rt.QIDList([0, 1, 2]))
    program = rt.Program(context, device, rt.Qpc(str(qpc)), properties)
    assert program.load() == rt.QStatus.QS_INVAL


def test_r5_program_of_another_generation(install: Install, runtime_of: RuntimeOf, qpc: Path) -> None:
    rt = runtime_of(install(devices="ai200")).rt
    program = rt.Program(rt.Context(), 0, rt.Qpc(str(qpc)), rt.QAicProgramProperties())
    assert program.load() == rt.QStatus.QS_INVAL


def test_encrypted_program_cannot_be_loaded(runtime: Runtime, compiler: Compiler) -> None:
    rt = runtime.rt
    qpc = compiler.ok(compiler.decoder_arguments("-io-encrypt=sample"))
    program = rt.Program(rt.Context(), 0, rt.Qpc(str(qpc)), rt.QAicProgramProperties())
    assert program.load() == rt.QStatus.QS_UNSUPPORTED


# G5 for runtime calls


def test_g5_status_of_each_life_cycle_call(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rt = runtime.rt
    error = CallFault(status=500)
    for call in ("Context", "Qpc"):
        set_faults(monkeypatch, **{call: error})
        with pytest.raises(RuntimeError, match=f"{call} failed: QS_ERROR"):
            rt.Context() if call == "Context" else rt.Qpc(str(qpc))
    monkeypatch.delenv("QAIC_STANDIN_FAULTS")
    context, opened = rt.Context(), rt.Qpc(str(qpc))
    program = rt.Program(context, 0, opened, rt.QAicProgramProperties())
    for call, run in {
        "Context_setLogLevel": lambda: context.setLogLevel(rt.QLogLevel.QL_DEBUG),
        "Qpc_getIoDescriptor": lambda: opened.getIoDescriptor()[0],
        "Program_load": program.load,
        "Program_activate": program.activate,
        "Program_deactivate": program.deactivate,
    }.items():
        set_faults(monkeypatch, **{call: CallFault(status=9)})
        assert run() == rt.QStatus.QS_TIMEDOUT
        monkeypatch.delenv("QAIC_STANDIN_FAULTS")
        assert run() == rt.QStatus.QS_SUCCESS


def test_g5_exec_object_failure(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(qpc, activate=False)
    text = "QAIC_ERROR_NSP_ALLOC_FAILED: Failed to allocate NSP resources"
    set_faults(monkeypatch, ExecObj=CallFault(raises=text))
    with pytest.raises(RuntimeError, match=text):
        session.activate()
    assert runtime.sdk.nsps_in_use() == {0: 4}, "the caller has to deactivate"
    session.deactivate()


def test_g5_status_of_each_run_call(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(qpc)
    logits = session.step([1], 0)
    timed_out = runtime.rt.QStatus.QS_TIMEDOUT
    for call, run in {
        "ExecObj_setData": lambda: session.exec_object.setData(session.buffers, session.dims),
        "Queue_enqueue": lambda: session.queue.enqueue(session.exec_object),
        "ExecObj_waitForCompletion": session.exec_object.waitForCompletion,
        "ExecObj_getData": lambda: session.exec_object.getData()[0],
    }.items():
        if call != "ExecObj_waitForCompletion" and call != "ExecObj_getData":
            set_faults(monkeypatch, **{call: CallFault(status=9)})
            assert run() == timed_out
            monkeypatch.delenv("QAIC_STANDIN_FAULTS")
            assert run() == runtime.rt.QStatus.QS_SUCCESS
    set_faults(monkeypatch, ExecObj_waitForCompletion=CallFault(status=9))
    assert session.exec_object.waitForCompletion() == timed_out
    monkeypatch.delenv("QAIC_STANDIN_FAULTS")
    np.testing.assert_array_equal(session.step([1], 0), logits)
    set_faults(monkeypatch, ExecObj_getData=CallFault(status=9))
    assert session.exec_object.getData()[0] == timed_out
    monkeypatch.delenv("QAIC_STANDIN_FAULTS")


# R16


def test_r16_queries(install: Install, runtime_of: RuntimeOf, qpc: Path) -> None:
    runtime = runtime_of(
        install(devices=[StandinDevice(qid=5, board_serial="B"), StandinDevice(qid=6, status="Error")])
    )
    rt, util = runtime.rt, runtime.rt.Util()
    status, ids = util.getDeviceIds()
    assert (status, list(ids)) == (rt.QStatus.QS_SUCCESS, [5, 6])
    assert util.getDeviceInfo(5)[1].boardSerial == "B"
    assert util.getDeviceInfo(7)[0] == rt.QStatus.QS_NODEV
    assert util.getResourceInfo(6)[0] == rt.QStatus.QS_NODEV
    assert util.getPerformanceInfo(5)[0] == rt.QStatus.QS_SUCCESS
    assert util.getAicVersion() == (rt.QStatus.QS_SUCCESS, 1, 21, 6, "standin")
    assert util.checkLibraryVersion() == rt.QStatus.QS_SUCCESS

    session = runtime.session(qpc, [5])
    resources = util.getResourceInfo(5)[1]
    assert (resources.nspTotal, resources.nspFree) == (16, 12)
    session.deactivate()
    assert util.getResourceInfo(5)[1].nspFree == 16


def test_r16_visible_devices(install: Install, runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    rt = runtime_of(install(devices="ultra")).rt
    monkeypatch.setenv("QAIC_VISIBLE_DEVICES", "1,3")
    assert list(rt.Util().getDeviceIds()[1]) == [1, 3]
    rt.Context(rt.QIDList([1, 3]))
    with pytest.raises(RuntimeError, match="Device 0 invalid"):
        rt.Context(rt.QIDList([0]))


def test_r16_device_lock(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    rt, one, two = runtime.rt, runtime.rt.Util(), runtime.rt.Util()
    assert one.lockDevice(0, True, False) == rt.QStatus.QS_UNSUPPORTED
    monkeypatch.setenv("QAIC_SERIALIZE_DEVICE", "1")
    assert one.lockDevice(0, True, False) == rt.QStatus.QS_SUCCESS
    assert two.lockDevice(0, True, False) == rt.QStatus.QS_BUSY
    assert two.lockDevice(0, False, False) == rt.QStatus.QS_INVAL
    assert one.lockDevice(0, False, False) == rt.QStatus.QS_SUCCESS
    assert two.lockDevice(0, True, False) == rt.QStatus.QS_SUCCESS
    assert two.lockDevice(0, False, False) == rt.QStatus.QS_SUCCESS
    assert two.lockDevice(9, True, False) == rt.QStatus.QS_NODEV


def test_queue_belongs_to_a_device_of_the_context(install: Install, runtime_of: RuntimeOf) -> None:
    rt = runtime_of(install(devices="two_boards")).rt
    context = rt.Context(rt.QIDList([4, 5]))
    with pytest.raises(RuntimeError, match="Device 0 is not in the context"):
        rt.Queue(context, 0)
    assert rt.Queue(context, 5)
    assert rt.Queue(rt.Context(), 0)


def test_process_id_in_the_log(install: Install, runtime_of: RuntimeOf, qpc: Path) -> None:
    runtime = runtime_of(install())
    runtime.session(qpc)
    assert str(os.getpid()) in runtime.sdk.layout.log_file.read_text()
