"""A session keeps a device's rules and its state."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest

from ort_sim_backend.session import OrtSession
from qeff_framework.plugin_api import CompiledModel, ExecutionError, InputError
from qeff_framework.sessions import host_inputs
from tests.lowering.graphs import STATES, attention_layer, parse, run, session
from tests.lowering.steps import Sequence
from tests.plugins.ort_sim_backend.programs import compile_program, execute, export, specializations

CHUNK, CTX_LEN = 4, 9
STEPS = Sequence(
    capacity=CTX_LEN,
    steps=tuple(
        np.array(step)
        for step in (
            [[0, 1, 2, 3], [0, 1, -1, -1]],
            [[4], [2]],
            [[5, 6, -1, -1], [-1, -1, -1, -1]],
            [[7], [3]],
            [[8], [-1]],
        )
    ),
    seed=3,
)


@pytest.fixture(scope="module", params=["lowered", "bodies"])
def compiled(request, tmp_path_factory) -> CompiledModel:
    """One attention layer; "bodies" has no kernel that could overwrite a state."""
    root = tmp_path_factory.mktemp("layer")
    exported = export(attention_layer(window=3), root / "export")
    shapes = specializations(batch=2, ctx_len=CTX_LEN, chunks=(CHUNK, 1))
    program = compile_program(exported, root / "program", shapes, lower=request.param == "lowered")
    assert program.program["in_place"] == (list(STATES) if request.param == "lowered" else [])
    shutil.rmtree(exported.directory)  # a program runs without its export
    return program


@pytest.fixture
def opened(compiled) -> OrtSession:
    return execute(compiled)


def reference_outputs() -> list[np.ndarray]:
    portable = session(attention_layer(window=3))
    states = {name: np.zeros_like(buffer) for name, buffer in STEPS.states().items()}
    outputs = []
    for number in range(len(STEPS.steps)):
        result = run(portable, {**STEPS.feeds(number), **states})
        states = {name: result[output] for name, output in STATES.items()}
        outputs.append(result["attended"])
    return outputs


def test_state_stays_between_steps_until_reset(opened):
    for _ in range(2):
        for number, expected in enumerate(reference_outputs()):
            outputs = opened.run(STEPS.feeds(number))

            assert outputs.keys() == {"attended"}
            row, token = np.nonzero(STEPS.steps[number] >= 0)
            np.testing.assert_allclose(
                outputs["attended"][row, :, token], expected[row, :, token], rtol=1e-5, atol=1e-5
            )
        opened.reset()


def test_large_inputs_are_read_where_they_lie(opened, monkeypatch):
    """Steps of both kinds alternate; what a caller does with its arrays afterwards changes nothing."""
    for number, expected in enumerate(reference_outputs()):
        monkeypatch.setattr("ort_sim_backend.session.READ_IN_PLACE_BYTES", 0 if number % 2 else 1 << 18)
        feeds = {name: value.copy() for name, value in STEPS.feeds(number).items()}
        if number == 3:
            feeds["query"] = np.repeat(feeds["query"], 2, axis=-1)[..., ::2]  # not one block of memory: copied

        outputs = opened.run(feeds)

        row, token = np.nonzero(STEPS.steps[number] >= 0)
        np.testing.assert_allclose(outputs["attended"][row, :, token], expected[row, :, token], atol=1e-5)
        for value in feeds.values():
            value.fill(7)


def test_each_step_may_run_in_another_session(compiled):
    """The states go along: those that are overwritten in place, and those of two buffers."""
    sessions = [execute(compiled), execute(compiled)]
    sessions[1].run(STEPS.feeds(0))
    for number, expected in enumerate(reference_outputs()):
        before, after = sessions[number % 2], sessions[1 - number % 2]
        outputs = before.run(STEPS.feeds(number))
        row, token = np.nonzero(STEPS.steps[number] >= 0)
        np.testing.assert_allclose(outputs["attended"][row, :, token], expected[row, :, token], rtol=1e-5, atol=1e-5)
        after.write_states(before.read_states())


def test_a_program_that_cannot_be_loaded_says_why(compiled, tmp_path):
    shutil.copytree(compiled.directory, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").write_bytes(b"not a model")

    with pytest.raises(ExecutionError, match=r"cannot load .*model\.onnx: .*[Pp]rotobuf"):
        execute(CompiledModel.load(tmp_path / "copy"))


def test_unpacked_weights_give_the_same(compiled):
    inputs = STEPS.feeds(0)
    packed, unpacked = execute(compiled).run(inputs), execute(compiled, pack_weights=False).run(inputs)

    np.testing.assert_array_equal(packed["attended"], unpacked["attended"])


@pytest.mark.parametrize("compiled", ["lowered"], indirect=True)
def test_a_window_takes_no_token_back_until_a_text_begins_anew(compiled):
    assert {state.kind for state in compiled.states} == {"window"}
    opened = execute(compiled)
    first = opened.run(STEPS.feeds(0))["attended"].copy()
    again = Sequence(capacity=CTX_LEN, steps=(np.array([[3], [-1]]),), seed=3).feeds(0)

    with pytest.raises(InputError, match=r"row 0 of position_ids begins at 3, and the row has 4 tokens"):
        opened.run(again)

    np.testing.assert_array_equal(opened.run(STEPS.feeds(0))["attended"][0], first[0])


# --- no step copies the cache ---------------------------------------------------------------------------------------

SHORT, LONG = 256, 65536


@pytest.mark.parametrize("chunk", [0, 64], ids=["GroupQueryAttention", "ScatterND"])
def test_time_of_an_update_does_not_grow_with_the_context(chunk, tmp_path):
    """With the cache in one buffer a token costs the same in any context; the dialect's bodies make a new cache each step."""

    def program(ctx_len: int, *, lower: bool) -> CompiledModel:
        directory = tmp_path / f"{ctx_len}-{lower}"
        exported = export(cache_only_layer(chunk), directory / "export")
        shapes = specializations(batch=1, ctx_len=ctx_len, chunks=(1,))
        return compile_program(exported, directory / "program", shapes, lower=lower)

    short, long = quickest_step(program(SHORT, lower=True)), quickest_step(program(LONG, lower=True))
    copying = quickest_step(program(LONG, lower=False))

    assert copying > 10 * short, "the measurement does not show copies"
    assert long < 3 * short


def cache_only_layer(chunk: int):
    """An attention layer; with a chunked mask only its two updates, whose attention would read the whole context."""
    model = attention_layer(chunk=chunk)
    if chunk:
        del model.graph.outputs[0]
    return model


def quickest_step(program: CompiledModel) -> float:
    """Seconds of the fastest of many decode steps: others may use the machine meanwhile."""
    opened = execute(program, num_threads=1)
    inputs = Sequence(capacity=SHORT, steps=(np.array([[3]]),), seed=0).feeds(0)
    inputs = {spec.name: inputs[spec.name] for spec in host_inputs(program)}
    return min(timed(lambda: opened.run(inputs)) for _ in range(200))


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("chunk", [0, 64], ids=["GroupQueryAttention", "ScatterND"])
def test_the_cache_never_moves(chunk, tmp_path):
    exported = export(attention_layer(chunk=chunk), tmp_path / "export")
    opened = execute(
        compile_program(exported, tmp_path / "program", specializations(batch=2, ctx_len=CTX_LEN, chunks=(CHUNK, 1)))
    )
    addresses = {name: buffer.ctypes.data for name, buffer in opened.states.items()}
    for number in range(len(STEPS.steps)):
        opened.run(STEPS.feeds(number))

    assert {name: buffer.ctypes.data for name, buffer in opened.states.items()} == addresses
    for row, written in ((0, 9), (1, 4)):
        assert opened.states["past_key"][row, :, :written].all(axis=(0, 2)).all()
        assert not opened.states["past_key"][row, :, written:].any()


# --- models without state -------------------------------------------------------------------------------------------


def test_an_encoder_takes_each_of_its_shapes(tmp_path):
    model = parse(
        "encoder (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] attention_mask)"
        "=> (float[batch_size, seq_len, 2] last_hidden_state)"
        "<float[3, 2] table = {0., 1., 2., 3., 4., 5.}, int64[1] last = {-1}>"
        "{ embedded = Gather (table, input_ids) mask = Unsqueeze (attention_mask, last) factor = CastLike (mask, embedded)"
        "last_hidden_state = Mul (embedded, factor) }"
    )
    exported = export(model, tmp_path / "export", task="encoder", states=())
    opened = execute(
        compile_program(exported, tmp_path / "program", specializations(batch=2, ctx_len=1, chunks=(3, 5)))
    )
    for length in (5, 3):
        ids, mask = np.full((2, length), 2), np.tile(np.arange(length) < 2, (2, 1)).astype(np.int64)

        (hidden,) = opened.run({"input_ids": ids, "attention_mask": mask}).values()

        np.testing.assert_array_equal(hidden, np.array([4.0, 5.0], np.float32) * mask[..., None])
    with pytest.raises(InputError, match=r"s3: .*; s5: "):
        opened.run({"input_ids": np.zeros((2, 4), np.int64), "attention_mask": np.ones((2, 4), np.int64)})
