"""Rows R6 to R15, R17 and C16: the IO descriptor, and what happens in a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tests.sdk_standins.graphs import Decoder, make_model, parse_graph
from tests.sdk_standins.harness import KV_FLOAT16, PREFILL_AND_DECODE, Compiler, Runtime
from tests.sdk_standins.host_session import HostSession
from tests.sdk_standins.qaic import (
    NEGATIVE_SCATTER_VARIABLE,
    ROUNDING_VARIABLE,
    CallFault,
    StandinSdk,
    fault_environment,
)
from tests.sdk_standins.qaic.qaic_standin.block_formats import quantize_mxint8, round_to_float16

Install = Callable[..., StandinSdk]
RuntimeOf = Callable[[StandinSdk], Runtime]
DECODER = Decoder()
TOLERANCE: dict[str, Any] = {"rtol": 5e-3, "atol": 5e-2}
MXINT8 = dict.fromkeys(KV_FLOAT16, "mxint8")


@pytest.fixture
def qpc(compiler: Compiler) -> Path:
    return compiler.ok(compiler.decoder_arguments())


def bindings_of(session: HostSession) -> dict[str, Any]:
    return {binding.name: binding for binding in session.bindings}


def inputs(ids: list[int], positions: list[int]) -> dict[str, np.ndarray]:
    return {"input_ids": np.array([ids], np.int64), "position_ids": np.array([positions], np.int64)}


# R6


def test_r6_bindings(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    api = runtime.api

    assert [b.name for b in session.bindings] == [
        "input_ids",
        "position_ids",
        "past_key.0",
        "logits",
        "past_key.0_RetainedState",
    ]
    assert [b.index for b in session.bindings] == list(range(5))
    assert [b.dir for b in session.bindings] == [api.BUFFER_IO_TYPE_INPUT] * 3 + [api.BUFFER_IO_TYPE_OUTPUT] * 2
    assert [b.type for b in session.bindings] == [
        api.INT64_I_TYPE,
        api.INT64_I_TYPE,
        api.FLOAT_16_TYPE,
        api.FLOAT_TYPE,
        api.FLOAT_16_TYPE,
    ]
    # Dims of the entry in which the binding is largest; logits do not differ between entries and are not retained.
    assert [(list(b.dims), b.size, b.is_partial_buf_allowed) for b in session.bindings] == [
        ([1, 4], 32, True),
        ([1, 4], 32, True),
        ([1, 2, 16, 4], 256, True),
        ([1, 1, 11], 44, False),
        ([1, 2, 16, 4], 256, True),
    ]


def test_r6_allowed_shapes(runtime: Runtime, compiler: Compiler, qpc: Path) -> None:
    two = runtime.session(qpc).description.allowed_shapes
    assert [[list(shape.dims) for shape in entry.shapes] for entry in two] == [
        [[1, n], [1, n], [1, 2, 16, 4], [1, 1, 11], [1, 2, 16, 4]] for n in (4, 1)
    ]
    assert [shape.type for shape in two[0].shapes] == [b.type for b in runtime.session(qpc).bindings]

    one = compiler.ok(compiler.decoder_arguments(specializations=[PREFILL_AND_DECODE[0]]))
    assert list(runtime.session(one).description.allowed_shapes) == []


def test_r6_descriptor_is_field_compatible(runtime: Runtime, qpc: Path) -> None:
    """Read with nothing but the field numbers of the published table."""

    def fields(data: bytes) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        at = 0

        def varint() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return value

        while at < len(data):
            key = varint()
            match key & 7:
                case 0:
                    found.append((key >> 3, varint()))
                case 2:
                    length = varint()
                    found.append((key >> 3, data[at : at + length]))
                    at += length
                case 5:
                    found.append((key >> 3, data[at : at + 4]))
                    at += 4
                case other:
                    raise AssertionError(other)
        return found

    _, data = runtime.rt.Qpc(str(qpc)).getIoDescriptor()
    top = fields(bytes(data))
    (selected,) = [value for number, value in top if number == 2]
    assert len([1 for number, _ in top if number == 8]) == 2
    bindings = [dict(fields(value)) for number, value in fields(selected) if number == 2]
    past = bindings[2]
    assert (past[1], past[2], past[3], past[8], past[10], past[20]) == (b"past_key.0", 2, 1, 256, 1, 1)
    assert past[7] == bytes([1, 2, 16, 4])


@pytest.mark.parametrize(
    ("element_type", "name"), [(TensorProto.FLOAT16, "FLOAT_16_TYPE"), (TensorProto.BOOL, "INT8_TYPE")]
)
def test_r6_types_of_the_graph(runtime: Runtime, compiler: Compiler, element_type: int, name: str) -> None:
    model = parse_graph("g (float[2] x) => (float[2] y) { y = Identity (x) }")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = element_type
    session = runtime.session(compiler.ok(compiler.arguments(model)))
    assert [b.type for b in session.bindings] == [getattr(runtime.api, name)] * 2


def test_r6_newer_type_is_absent_from_older_modules(install: Install, runtime_of: RuntimeOf) -> None:
    with install().runtime() as (_, api):
        assert not hasattr(api, "BFLOAT16_TYPE")
    with install(profile="1.22").runtime() as (_, api):
        assert api.BFLOAT16_TYPE == 11


# R7, R8, R9


def test_r7_number_of_buffers(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    invalid = runtime.rt.QStatus.QS_INVAL
    assert session.exec_object.setData(session.buffers[:-1], session.dims) == invalid
    short = runtime.rt.BufferDimensionsVecRef(list(session.dims)[:-1])
    assert session.exec_object.setData(session.buffers, short) == invalid


def test_r7_buffer_length_agrees_with_dims(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    session.dims[0] = (8, [1, 3])
    assert session.exec_object.setData(session.buffers, session.dims) == runtime.rt.QStatus.QS_INVAL
    session.dims[0] = (8, [1, 4])
    assert session.exec_object.setData(session.buffers, session.dims) == runtime.rt.QStatus.QS_SUCCESS


@pytest.mark.parametrize(
    "change",
    [
        inputs([1, 2], [0, 1]),
        inputs([1] * 8, list(range(8))),
        {"position_ids": np.zeros((1, 1), np.int64)},
        {"input_ids": np.zeros((1, 4), np.int32)},
        {"input_ids": np.zeros((4,), np.int64)},
        {"logits": np.zeros((1, 4, 11), np.float32)},
        {"logits": np.zeros((1, 1, 11), np.float16)},
        {"past_key.0": np.zeros((1, 2, 8, 4), np.float16)},
        {"past_key.0": np.zeros((1, 2, 16, 4), np.float32)},
    ],
)
def test_r8_mismatch_shows_at_completion(
    runtime: Runtime, qpc: Path, capfd: pytest.CaptureFixture[str], change: dict[str, np.ndarray]
) -> None:
    session = runtime.session(qpc)
    session.run(inputs([1, 2, 3, 4], [0, 1, 2, 3]))

    status = session.try_run(change)

    assert status == runtime.rt.QStatus.QS_DEV_ERROR
    assert "No matching specialization found" in capfd.readouterr().err
    assert session.exec_object.getData()[0] == runtime.rt.QStatus.QS_INVAL


def test_r8_single_specialization_is_exact(runtime: Runtime, compiler: Compiler) -> None:
    session = runtime.session(compiler.ok(compiler.decoder_arguments(specializations=[PREFILL_AND_DECODE[0]])))
    assert session.try_run(inputs([1, 2], [0, 1])) == runtime.rt.QStatus.QS_DEV_ERROR
    session.step([1, 2], 0, width=4)


def test_r9_element_size_counts_and_type_does_not(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    expected = session.step([1, 2, 3, 4], 0)
    session.set({"input_ids": np.array([[1, 2, 3, 4]], np.uint64)})
    np.testing.assert_array_equal(session.run({})["logits"][0, 0], expected)


def test_r9_skipping(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    session.skip("position_ids")
    assert session.try_run({}) == runtime.rt.QStatus.QS_DEV_ERROR
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    session.skip("logits")
    assert session.run({}) == {}


def test_r9_empty_dims(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    session.dims[session.index["past_key.0"]] = (2, [])
    session.submit()
    assert session.exec_object.waitForCompletion() == runtime.rt.QStatus.QS_DEV_ERROR


# R10, and selection of prefill and decode by dims


def test_r10_state_stays_on_the_device(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    tokens = [3, 1, 4, 1, 5, 9]

    np.testing.assert_allclose(session.step(tokens[:4], 0), DECODER.logits(tokens[:4]), **TOLERANCE)
    np.testing.assert_allclose(session.step(tokens[4:5], 4), DECODER.logits(tokens[:5]), **TOLERANCE)
    np.testing.assert_allclose(session.step(tokens[5:6], 5), DECODER.logits(tokens), **TOLERANCE)
    # A new prompt overwrites slots; stale ones behind it are not seen.
    np.testing.assert_allclose(session.step([7, 8], 0, width=4), DECODER.logits([7, 8]), **TOLERANCE)


def test_r10_chunked_prefill_with_padding(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    tokens = [3, 1, 4, 1, 5, 9]
    session.step(tokens[:4], 0)
    np.testing.assert_allclose(session.step(tokens[4:], 4, width=4), DECODER.logits(tokens), **TOLERANCE)
    np.testing.assert_allclose(session.step([2], 6), DECODER.logits([*tokens, 2]), **TOLERANCE)


def test_r10_provided_state_overwrites_and_can_be_read(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    session.set({"past_key.0_RetainedState": np.zeros((1, 2, 16, 4), np.float16)})
    session.step([3, 1, 4, 1], 0)
    _, blocks = session.exec_object.getData()
    state = np.frombuffer(bytes(blocks[4]), np.float16).reshape(1, 2, 16, 4)
    embed = DECODER.weights()["embed"][[3, 1, 4, 1]].reshape(4, 2, 4).transpose(1, 0, 2)
    np.testing.assert_allclose(state[0, :, :4], embed, rtol=2e-3)
    assert not state[0, :, 4:].any()

    session.skip("past_key.0_RetainedState")
    session.step([5], 4)
    session.set({"past_key.0": state})
    np.testing.assert_allclose(session.step([9], 4), DECODER.logits([3, 1, 4, 1, 9]), **TOLERANCE)
    session.skip("past_key.0")
    np.testing.assert_allclose(session.step([2], 5), DECODER.logits([3, 1, 4, 1, 9, 2]), **TOLERANCE)


def test_r10_fresh_activation_is_zero(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    session.step([3, 1, 4, 1], 0)
    session.deactivate()
    session.activate()
    np.testing.assert_allclose(session.step([5], 4), DECODER.logits([5]), **TOLERANCE)


def test_r10_state_is_shared_by_exec_objects_and_not_by_programs(runtime: Runtime, qpc: Path) -> None:
    one, other = runtime.session(qpc), runtime.session(qpc)
    one.step([3, 1, 4, 1], 0)
    first = one.exec_object
    one.exec_object = runtime.rt.ExecObj(one.context, one.program)
    np.testing.assert_allclose(one.step([5], 4), DECODER.logits([3, 1, 4, 1, 5]), **TOLERANCE)
    np.testing.assert_allclose(other.step([5], 4), DECODER.logits([5]), **TOLERANCE)
    del first


def test_r10_without_the_flag_state_is_ordinary(runtime: Runtime, compiler: Compiler) -> None:
    arguments = [a for a in compiler.decoder_arguments() if a != "-retained-state"]
    session = runtime.session(compiler.ok(arguments))
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    assert session.try_run({}) == runtime.rt.QStatus.QS_DEV_ERROR
    session.run({"past_key.0": np.zeros((1, 2, 16, 4), np.float16)})


# R11 and C16


@pytest.mark.parametrize("mode", ["wrap", "drop"])
@pytest.mark.parametrize("opset", [17, 18])
def test_r11_negative_positions(
    runtime: Runtime, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, mode: str, opset: int
) -> None:
    """Position -1 writes slot C-1 or nothing; the logits are the same, because that slot is hidden until it is written."""
    monkeypatch.setenv(NEGATIVE_SCATTER_VARIABLE, mode)
    session = runtime.session(compiler.ok(compiler.decoder_arguments(model=Decoder(opset=opset).model())))
    session.set({"past_key.0_RetainedState": np.zeros((1, 2, 16, 4), np.float16)})

    logits = session.step([3, 1], 0, width=4)

    np.testing.assert_allclose(logits, DECODER.logits([3, 1]), **TOLERANCE)
    state = np.frombuffer(bytes(session.exec_object.getData()[1][4]), np.float16).reshape(2, 16, 4)
    assert state[:, 15].any() == (mode == "wrap")


def test_r11_index_beyond_the_range(runtime: Runtime, qpc: Path) -> None:
    """Every step gathers with the sentinel index; a scatter beyond the context is dropped."""
    session = runtime.session(qpc)
    session.step([3, 1, 4, 1], 0)
    session.run(inputs([5], [2**31 - 1]))
    np.testing.assert_allclose(session.step([5], 4), DECODER.logits([3, 1, 4, 1, 5]), **TOLERANCE)


def test_r11_ordinary_operators_keep_their_limits(runtime: Runtime, compiler: Compiler) -> None:
    model = parse_graph("g (float[4] x, int64[1] i) => (float[1] y) { y = Gather (x, i) }")
    session = runtime.session(compiler.ok(compiler.arguments(model)))
    assert session.try_run({"x": np.zeros(4, np.float32), "i": np.array([9])}) == runtime.rt.QStatus.QS_DEV_ERROR


def test_r11_weights_and_io_are_rounded_to_fp16(runtime: Runtime, compiler: Compiler) -> None:
    model = parse_graph("g (float[2] x) => (float[2] y) { y = Add (x, w) }", w=np.array([1 + 2**-12, 0], np.float32))
    values = np.array([0, 1 + 2**-12], np.float32)
    exact = runtime.session(compiler.ok(compiler.arguments(model)))
    assert exact.run({"x": values})["y"].tolist() == [1 + 2**-12, 1 + 2**-12]
    half = runtime.session(compiler.ok([*compiler.arguments(model), "-convert-to-fp16"]))
    assert half.run({"x": values})["y"].tolist() == [1, 1]


def test_r11_rounding_of_every_node(runtime: Runtime, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse_graph(
        "g (float[1] x) => (float[1] y) { large = Mul (x, x)  y = Mul (large, small) }",
        small=np.array([2**-10], np.float32),
    )
    qpc = compiler.ok([*compiler.arguments(model), "-convert-to-fp16"])
    x = np.array([1000], np.float32)
    # 1e6 fits float32 but not FP16.
    assert np.isfinite(runtime.session(qpc).run({"x": x})["y"]).all()
    monkeypatch.setenv(ROUNDING_VARIABLE, "every_node")
    assert np.isinf(runtime.session(qpc).run({"x": x})["y"]).all()


def test_c16_constants_beyond_fp16_become_infinite(runtime: Runtime, compiler: Compiler) -> None:
    """The classic mask constant: harmless in float32, NaN when it becomes infinite and is multiplied by zero."""
    model = parse_graph(
        "g (float[1] x) => (float[1] y) { y = Mul (x, lowest) }", lowest=np.array([-3.4e38], np.float32)
    )
    zero = {"x": np.zeros(1, np.float32)}
    assert runtime.session(compiler.ok(compiler.arguments(model))).run(zero)["y"].tolist() == [0]
    half = runtime.session(compiler.ok([*compiler.arguments(model), "-convert-to-fp16"]))
    assert np.isnan(half.run(zero)["y"]).all()


def test_mxfp6_weights(runtime: Runtime, compiler: Compiler) -> None:
    weights = DECODER.weights()
    logits = runtime.session(compiler.ok(compiler.decoder_arguments("-mxfp6-matmul"))).step([3, 1, 4, 1], 0)
    exact = DECODER.logits([3, 1, 4, 1])
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    # Three mantissa bits: far from FP16's 2**-11, and not garbage.
    assert 1e-3 < error < 0.1
    assert set(weights) == {"embed", "head"}


def test_float16_model(runtime: Runtime, compiler: Compiler) -> None:
    model = Decoder(element_type=TensorProto.FLOAT16).model()
    session = runtime.session(compiler.ok(compiler.decoder_arguments(model=model)))
    np.testing.assert_allclose(session.step([3, 1, 4], 0, width=4), DECODER.logits([3, 1, 4]), rtol=2e-2, atol=5e-2)


def test_bfloat16_model_on_ai200(install: Install, runtime_of: RuntimeOf, newer_compiler: Compiler) -> None:
    path = newer_compiler.write_model(Decoder(element_type=TensorProto.BFLOAT16).model())
    arguments = [
        *newer_compiler.arguments(
            path, specializations=PREFILL_AND_DECODE, custom_io=dict.fromkeys(KV_FLOAT16, "bfloat16")
        ),
        "-retained-state",
    ]
    qpc = newer_compiler.ok([a.replace("=ai100", "=ai200") for a in arguments])
    session = runtime_of(install(profile="1.22", devices="ai200")).session(qpc)
    assert bindings_of(session)["logits"].type == 11
    bits = session.step([3, 1, 4], 0, width=4).view(np.uint16)
    logits = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(logits, DECODER.logits([3, 1, 4]), rtol=3e-2, atol=0.1)


def test_external_weights(runtime: Runtime, compiler: Compiler) -> None:
    decoder = Decoder(vocab=300)
    path = decoder.save(compiler.folder / "big.onnx", external=True)
    qpc = compiler.ok(compiler.decoder_arguments(model=path))
    path.with_name("big.onnx.data").unlink()
    logits = runtime.session(qpc).step([3, 1, 4, 299], 0)
    np.testing.assert_allclose(logits, decoder.logits([3, 1, 4, 299]), **TOLERANCE)


def test_custom_io_int8_and_channels_last(runtime: Runtime, compiler: Compiler) -> None:
    model = parse_graph(
        "g (float[1, 2, 1, 3] x, float[2] z) => (float[1, 2, 1, 3] y, float[2] w) { y = Neg (x)  w = Neg (z) }"
    )
    file = compiler.write(
        "io.yaml",
        "- {IOName: x, Precision: float16, Layout: NHWC}\n- {IOName: z, Precision: int8, Scale: 0.5, Offset: 3}\n",
    )
    session = runtime.session(compiler.ok([*compiler.arguments(model), f"-custom-IO-list-file={file}"]))
    assert [list(b.dims) for b in session.bindings] == [[1, 1, 3, 2], [2], [1, 2, 1, 3], [2]]
    x = np.arange(6, dtype=np.float16).reshape(1, 1, 3, 2)
    outputs = session.run({"x": x, "z": np.array([3, 5], np.int8)})
    np.testing.assert_array_equal(outputs["y"], -x.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_array_equal(outputs["w"], [0, -1])


def test_scalar_input_has_one_dim(runtime: Runtime, compiler: Compiler) -> None:
    model = parse_graph("g (float s, float[2] x) => (float[2] y) { y = Mul (x, s) }")
    session = runtime.session(compiler.ok(compiler.arguments(model)))
    assert list(session.bindings[0].dims) == [1]
    outputs = session.run({"s": np.array(3, np.float32), "x": np.ones(2, np.float32)})
    assert outputs["y"].tolist() == [3, 3]


# R12


def test_r12_order_of_calls(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(qpc)
    exec_object, invalid = session.exec_object, runtime.rt.QStatus.QS_INVAL
    assert session.queue.enqueue(exec_object) == invalid
    assert exec_object.waitForCompletion() == invalid
    assert exec_object.getData() == (invalid, [])

    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    session.submit()
    assert exec_object.getData()[0] == invalid
    assert exec_object.waitForCompletion() == runtime.rt.QStatus.QS_SUCCESS
    assert exec_object.waitForCompletion() == invalid
    status, blocks = exec_object.getData()
    assert status == runtime.rt.QStatus.QS_SUCCESS
    assert [block.size for block in blocks] == [0, 0, 0, 44, 0]


# R13 and R14


def slow_execution(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name, value in fault_environment(runtime={"execute": CallFault(sleep_seconds=seconds)}).items():
        monkeypatch.setenv(name, value)


def test_r13_enqueue_does_not_wait(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(qpc)
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    slow_execution(monkeypatch, 0.5)
    start = time.perf_counter()
    session.submit()
    submitted = time.perf_counter() - start

    busy = runtime.rt.QStatus.QS_BUSY
    assert session.exec_object.setData(session.buffers, session.dims) == busy
    assert session.queue.enqueue(session.exec_object) == busy
    assert session.exec_object.waitForCompletion() == runtime.rt.QStatus.QS_SUCCESS
    assert submitted < 0.4
    assert time.perf_counter() - start >= 0.5


def test_r13_rearming_needs_the_wait_even_after_the_work(runtime: Runtime, qpc: Path) -> None:
    session = runtime.session(qpc)
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    session.submit()
    time.sleep(0.2)
    assert session.exec_object.setData(session.buffers, session.dims) == runtime.rt.QStatus.QS_BUSY
    session.check(session.exec_object.waitForCompletion())


def test_r13_several_in_flight_complete_in_order(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelined chunks: each one is submitted before the one ahead is done, and sees that one's state."""
    session = runtime.session(qpc)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    slow_execution(monkeypatch, 0.05)
    flights = [session.exec_object, *(runtime.rt.ExecObj(session.context, session.program) for _ in range(2))]
    for i, exec_object in enumerate(flights):
        session.exec_object = exec_object
        session.set(inputs(tokens[4 * i : 4 * i + 4], list(range(4 * i, 4 * i + 4))))
        session.submit()
    # Waiting in another order than that of completion changes nothing.
    for exec_object in reversed(flights):
        session.check(exec_object.waitForCompletion())

    for i, exec_object in enumerate(flights):
        logits = np.frombuffer(bytes(exec_object.getData()[1][3]), np.float32)
        np.testing.assert_allclose(logits, DECODER.logits(tokens[: 4 * i + 4]), **TOLERANCE)
    del exec_object
    flights.clear()


def test_r13_deactivation_waits_for_nothing(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(qpc)
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    slow_execution(monkeypatch, 0.3)
    session.submit()
    session.exec_object = None
    assert session.program.deactivate() == runtime.rt.QStatus.QS_BUSY
    deadline = time.monotonic() + 20
    while session.program.deactivate() != runtime.rt.QStatus.QS_SUCCESS:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_r14_timeout(runtime: Runtime, qpc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.session(qpc, activate=False)
    session.program.unload()
    properties = runtime.rt.QAicProgramProperties()
    properties.dataPathTimeoutMs = 100
    session.program.initProperties(properties)
    session.program.load()
    session.activate()
    session.set(inputs([1, 2, 3, 4], [0, 1, 2, 3]))
    slow_execution(monkeypatch, 0.4)
    session.submit()
    assert session.exec_object.waitForCompletion() == runtime.rt.QStatus.QS_TIMEDOUT
    time.sleep(0.5)
    assert session.exec_object.waitForCompletion() == runtime.rt.QStatus.QS_SUCCESS


# R15


@pytest.mark.parametrize(("profile", "present"), [("legacy", False), ("1.21", False), ("1.22", True)])
def test_r15_newer_calls(install: Install, profile: str, present: bool) -> None:
    with install(profile=profile).runtime() as (rt, _):
        for owner, name in (
            (rt, "QAicQueueProperties"),
            (rt, "ProfilingHandle"),
            (rt.Program, "createSlicingSpecHandle"),
            (rt.ExecObj, "setDataWithSlices"),
        ):
            assert hasattr(owner, name) == present


@pytest.fixture
def newer(install: Install, runtime_of: RuntimeOf, newer_compiler: Compiler) -> HostSession:
    runtime = runtime_of(install(profile="1.22"))
    return runtime.session(newer_compiler.ok(newer_compiler.decoder_arguments()))


def test_r15_arrays_instead_of_buffers(newer: HostSession) -> None:
    tokens = inputs([3, 1, 4, 1], [0, 1, 2, 3])
    arrays = [(newer.index[name], value) for name, value in tokens.items()]
    arrays.append((newer.index["logits"], np.zeros((1, 1, 11), np.float32)))
    newer.check(newer.exec_object.setData(arrays))
    newer.check(newer.queue.enqueue(newer.exec_object))
    newer.check(newer.exec_object.waitForCompletion())
    logits = np.frombuffer(bytes(newer.exec_object.getData()[1][3]), np.float32)
    np.testing.assert_allclose(logits, DECODER.logits([3, 1, 4, 1]), **TOLERANCE)
    assert newer.exec_object.setData([(99, np.zeros(1))]) == newer.rt.QStatus.QS_INVAL


def test_r15_slices_hand_state_over(newer: HostSession) -> None:
    dims = [{"start": "batch_index"}, {"start": 0}, {"start": "ctx_start"}, {"start": 0}]
    spec = {"BufferSpecs": [{"Name": r"past_key\.\d+", "ElemSize": 2, "DimSpecs": dims}]}
    status, handle = newer.program.createSlicingSpecHandle(json.dumps(spec))
    newer.check(status)
    assert newer.program.createSlicingSpecHandle("{}")[0] == newer.rt.QStatus.QS_INVAL
    embed = DECODER.weights()["embed"][[3, 1, 4]].reshape(1, 3, 2, 4).transpose(0, 2, 1, 3).astype(np.float16)
    place = [("batch_index", 0), ("ctx_start", 0)]

    status, _ = newer.exec_object.setDataWithSlices([(2, embed)], handle, place)
    newer.check(status)
    np.testing.assert_allclose(newer.step([9], 3), DECODER.logits([3, 1, 4, 9]), **TOLERANCE)

    for wrong in ([(0, embed)], [(2, embed.astype(np.float32))], [(2, np.tile(embed, (1, 1, 6, 1)))]):
        assert newer.exec_object.setDataWithSlices(wrong, handle, place)[0] == newer.rt.QStatus.QS_INVAL


def test_r15_profiling_and_queue_properties(newer: HostSession, tmp_path: Path) -> None:
    properties = newer.rt.QAicQueueProperties()
    properties.numThreadsPerQueue = 1
    newer.check(newer.queue.initProperties(properties))
    kind = newer.rt.QAicProfilingTypeEnum.QAIC_PROFILING_INFERENCE_LATENCY_TYPE
    handle = newer.rt.ProfilingHandle(
        programs=[newer.program], type=kind, fileNamePrefix="run", outputDirectory=str(tmp_path)
    )
    assert handle.stop() == newer.rt.QStatus.QS_INVAL
    newer.check(handle.start())
    newer.check(handle.stop())
    assert json.loads((tmp_path / "run_profile.json").read_text())["devices"] == [[0]]


def test_benchmark_set(runtime: Runtime, qpc: Path) -> None:
    rt = runtime.rt
    session = runtime.session(qpc, activate=False)
    buffers = [rt.QBuffer(bytes(binding.size)) for binding in session.bindings]
    benchmark = rt.InferenceBenchmarkSet(session.context, session.qpc, 0, 1, 2, buffers, rt.QAicProgramProperties())
    assert benchmark.run(1) == rt.QStatus.QS_INVAL
    assert benchmark.enable() == rt.QStatus.QS_SUCCESS
    assert runtime.sdk.nsps_in_use() == {0: 8}
    assert benchmark.run(5) == rt.QStatus.QS_SUCCESS
    count, rate, microseconds, batch = benchmark.getLastRunStats()
    assert (count, batch) == (5, 1)
    assert rate == pytest.approx(5e6 / microseconds, rel=0.01)
    assert benchmark.disable() == rt.QStatus.QS_SUCCESS


# R17


@pytest.fixture
def mx_session(runtime: Runtime, compiler: Compiler) -> HostSession:
    return runtime.session(compiler.ok(compiler.decoder_arguments(custom_io=MXINT8)))


def test_r17_state_in_mxint8(mx_session: HostSession) -> None:
    assert [bindings_of(mx_session)[name].size for name in MXINT8] == [128, 128]
    weights = {name: round_to_float16(value) for name, value in DECODER.weights().items()}
    mx_session.step([3, 1, 4, 1], 0)

    logits = mx_session.step([5], 4)

    # What was written in an earlier call comes back in mxint8; this call's own token has not been stored yet.
    stored = quantize_mxint8(weights["embed"][[3, 1, 4, 1]].reshape(4, 2, 4))[0].reshape(4, 8)
    expected = (stored.sum(axis=0) + weights["embed"][5]) @ weights["head"]
    np.testing.assert_allclose(logits, round_to_float16(expected), rtol=1e-3, atol=1e-3)
    assert np.abs(expected - DECODER.logits([3, 1, 4, 1, 5])).max() > 1e-2


def test_r17_host_reads_opaque_bytes(mx_session: HostSession) -> None:
    outputs = mx_session.run(
        {**inputs([3, 1, 4, 1], [0, 1, 2, 3]), "past_key.0_RetainedState": np.zeros((1, 2, 16, 4), np.int8)}
    )
    assert outputs["past_key.0_RetainedState"].dtype == np.int8
    assert outputs["past_key.0_RetainedState"][:, :, :4].any()


def test_r17_host_cannot_write_floats(mx_session: HostSession, runtime: Runtime) -> None:
    mx_session.set(inputs([3, 1, 4, 1], [0, 1, 2, 3]))
    for dtype in (np.float32, np.float16):
        mx_session.set({"past_key.0": np.ones((1, 2, 16, 4), dtype)})
        assert mx_session.exec_object.setData(mx_session.buffers, mx_session.dims) == runtime.rt.QStatus.QS_INVAL
    assert mx_session.try_run({"past_key.0": np.ones((1, 2, 16, 4), np.int8)}) == runtime.rt.QStatus.QS_DEV_ERROR
    # Zeros are zeros in any block format: they clear the state.
    mx_session.set({"past_key.0": np.zeros((1, 2, 16, 4), np.int8)})
    np.testing.assert_allclose(mx_session.step([3], 0), DECODER.logits([3]), rtol=0.1, atol=0.3)


def test_wrong_function_body_stays_wrong(runtime: Runtime, compiler: Compiler) -> None:
    """Functions are executed as the model brings them: the stand-in does not replace them by their names."""
    model = Decoder().model()
    scatter = next(function for function in model.functions if function.name == "CtxScatter")
    final = scatter.node[-1]
    final.op_type = "Identity"
    del final.input[1:]
    session = runtime.session(compiler.ok(compiler.decoder_arguments(model=model)))
    assert not session.step([3, 1, 4, 1], 0).any()


def test_zero_copies_are_not_aliases(runtime: Runtime, qpc: Path) -> None:
    """Data given to setData is taken at that moment."""
    session = runtime.session(qpc)
    values = inputs([1, 2, 3, 4], [0, 1, 2, 3])
    session.set(values)
    session.submit()
    values["input_ids"][:] = 9
    session.check(session.exec_object.waitForCompletion())
    logits = np.frombuffer(bytes(session.exec_object.getData()[1][3]), np.float32)
    np.testing.assert_allclose(logits, DECODER.logits([1, 2, 3, 4]), **TOLERANCE)


def test_model_with_subgraph_constants(runtime: Runtime, compiler: Compiler) -> None:
    """Constants inside the bodies of control flow are rounded like all others."""

    def body(name: str, value: float) -> onnx.GraphProto:
        constant = numpy_helper.from_array(np.array([value], np.float32))
        nodes = [onnx.helper.make_node("Constant", [], [name], value=constant)]
        return onnx.helper.make_graph(
            nodes, name, [], [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])]
        )

    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body("a", 1 + 2**-12), else_branch=body("b", 2))
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, [1])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    arguments = compiler.arguments(make_model(graph))
    assert runtime.session(compiler.ok(arguments)).run({"c": np.array([True])})["y"].tolist() == [1 + 2**-12]
    half = runtime.session(compiler.ok([*arguments, "-convert-to-fp16"]))
    assert half.run({"c": np.array([True])})["y"].tolist() == [1]
