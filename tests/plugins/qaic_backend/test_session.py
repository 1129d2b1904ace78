"""Programs on the stand-in's device: the tokens of Transformers' eager decoding, and the rules of a session."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qaic_backend.lowering import RotaryTables
from qeff_framework.contracts import AdapterRoom, CompiledModel, ExportedModel, StateSpec
from qeff_framework.errors import BackendUnavailableError, ExecutionError, OptionError
from qeff_framework.export.portable import export_portable
from tests.eager import eager_greedy
from tests.plugins.qaic_backend.half_precision import same_up_to_near_ties
from tests.plugins.qaic_backend.sessions import compile_program, continuation, open_session
from tests.portable_loop import PortableLoop
from tests.sdk_standins.qaic import NEGATIVE_SCATTER_VARIABLE, ROUNDING_VARIABLE, CallFault, fault_environment
from tests.tiny_models import tiny_causal_lm

#: The chunks of 4 leave partial ones and rows that are all padding; the first row ends with the context.
PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90], [11, 29, 47, 83, 101, 6]]
CHUNK, NEW_TOKENS = 4, 10


# FP16 weights move scores by up to 0.025 standard deviations here, and by 2 where they make Mixtral's router choose another
# expert; so its tokens are compared with weights in float32 (the cache stays FP16), and in FP16 below.
@pytest.mark.parametrize(
    ("model_type", "options"),
    [("llama", {}), ("gemma3_text", {}), ("gpt2", {}), ("mamba", {}), ("mixtral", {"convert_to_fp16": False})],
)
def test_standin_gives_the_tokens_of_eager_decoding(
    model_type, options, standin, exports, tmp_path, monkeypatch
) -> None:
    module, _ = tiny_causal_lm(model_type)
    expected = [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > 5, "the reference is degenerate"
    standin()

    compiled = compile_program(exports(model_type), tmp_path / "program", batch_size=len(PROMPTS), **options)
    for negative_scatter in ("wrap", "drop"):
        monkeypatch.setenv(NEGATIVE_SCATTER_VARIABLE, negative_scatter)
        session = open_session(compiled)
        try:
            answers = continuation(session, PROMPTS, chunk=CHUNK, new_tokens=NEW_TOKENS)
            equal = [same_up_to_near_ties(module, *case) for case in zip(PROMPTS, answers, expected, strict=True)]
            assert sum(equal) >= len(PROMPTS) - 1
            # A second generation starts from nothing.
            session.reset()
            turned = continuation(session, PROMPTS[::-1], chunk=CHUNK, new_tokens=NEW_TOKENS)
            assert turned == answers[::-1]
        finally:
            session.close()


def test_standin_experts_in_half_precision(standin, exports, tmp_path) -> None:
    """A router that chooses another expert in FP16 changes the rest of one answer; the other answers are those of float32."""
    module, _ = tiny_causal_lm("mixtral")
    expected = [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    standin()
    session = open_session(compile_program(exports("mixtral"), tmp_path / "program", batch_size=len(PROMPTS)))
    answers = continuation(session, PROMPTS, chunk=CHUNK, new_tokens=NEW_TOKENS)
    session.close()
    assert sum(answer == wanted for answer, wanted in zip(answers, expected, strict=True)) >= len(PROMPTS) - 1
    assert all(answer[:5] == wanted[:5] for answer, wanted in zip(answers, expected, strict=True))


@pytest.fixture
def llama_session(standin, llama_program):
    standin()
    session = open_session(llama_program)
    yield session
    session.close()


def feed(token: int, position: int) -> dict[str, np.ndarray]:
    return {"input_ids": np.array([[token]]), "position_ids": np.array([[position]])}


def test_standin_state_is_kept_until_reset(llama_session) -> None:
    first = llama_session.run(feed(7, 0))["logits"].copy()
    second = llama_session.run(feed(8, 1))["logits"].copy()
    llama_session.reset()
    # Slot 0 is zero again, so the same step sees another past.
    assert not np.array_equal(llama_session.run(feed(8, 1))["logits"], second)
    llama_session.reset()
    np.testing.assert_array_equal(llama_session.run(feed(7, 0))["logits"], first)
    np.testing.assert_array_equal(llama_session.run(feed(8, 1))["logits"], second)
    assert first.dtype == np.float32


def test_standin_states_are_read_and_written(standin, llama_export, llama_program, tmp_path) -> None:
    """They leave the device beside a step of padding, which changes nothing, and go there with the next step."""
    standin()
    filling = open_session(compile_program(llama_export, tmp_path / "fills", prefill_only=True))
    assert [item.name for item in filling.specializations] == ["prefill"]
    filling.run({"input_ids": np.array([[7, 8, 9, 0]]), "position_ids": np.array([[0, 1, 2, -1]])})
    states = filling.read_states()
    assert all(np.array_equal(value, states[name]) for name, value in filling.read_states().items())
    filling.close()
    # The slots behind the text were never written.
    assert all(
        value.dtype == np.float32 and value[:, :, :3].any() and not value[:, :, 3:].any() for value in states.values()
    )

    whole = open_session(llama_program)
    whole.run({"input_ids": np.array([[7, 8, 9, 0]]), "position_ids": np.array([[0, 1, 2, -1]])})
    expected = whole.run(feed(5, 3))["logits"].copy()
    whole.close()
    decoding = open_session(compile_program(llama_export, tmp_path / "decodes", prefill_only=False))
    decoding.run(feed(1, 0))
    decoding.reset()
    decoding.write_states(states)
    read = decoding.read_states(["past_key.0"])["past_key.0"]
    np.testing.assert_array_equal(read, states["past_key.0"])
    np.testing.assert_array_equal(decoding.run(feed(5, 3))["logits"], expected)
    decoding.close()

    bundle = compile_program(llama_export, tmp_path / "bundle", prefill_only=True, dry_run=True)
    assert json.loads((bundle.directory / "specializations.json").read_text()) == {
        "specializations": [{"batch_size": "1", "ctx_len": "24", "seq_len": "4"}]
    }

    packed = open_session(compile_program(llama_export, tmp_path / "packed", mxint8_kv_cache=True))
    with pytest.raises(ExecutionError, match=r"keeps past_key\.0 as MXINT8.*compile without mxint8_kv_cache"):
        packed.read_states()
    packed.close()


def test_standin_adapters_are_written_and_stay_when_the_text_is_forgotten(standin, tmp_path) -> None:
    module, _ = tiny_causal_lm("llama")
    weight = "model.layers.0.self_attn.q_proj.weight"
    room = AdapterRoom(slots=1, rank=2, weights=(weight,))
    (tmp_path / "export").mkdir()
    exported = export_portable(module, task="causal-lm", output_dir=tmp_path / "export", adapter_room=room)
    standin()
    session = open_session(compile_program(exported, tmp_path / "program", mxint8_kv_cache=True))

    def logits(adapter: int) -> np.ndarray:
        session.reset()
        session.run({**feed(7, 0), "lora_ids": np.array([[adapter]])})
        return session.run({**feed(8, 1), "lora_ids": np.array([[adapter]])})["logits"].copy()

    plain = logits(0)
    np.testing.assert_array_equal(logits(1), plain)
    random = np.random.default_rng(0)
    shapes = {spec.name: spec.shape for spec in exported.inputs}
    stacks = {
        name: random.normal(size=shapes[name]).astype(np.float32)
        for name in (f"lora_down.{weight}", f"lora_up.{weight}")
    }
    for stack in stacks.values():
        stack[0] = 0
    session.write_states(stacks)
    adapted = logits(1)
    assert not np.array_equal(adapted, plain)
    np.testing.assert_array_equal(logits(0), plain)
    np.testing.assert_array_equal(logits(1), adapted)
    session.close()


def test_standin_program_of_another_artifact_is_refused(standin, llama_export, llama_program, tmp_path) -> None:
    sdk = standin()
    longer = compile_program(llama_export, tmp_path / "longer", prefill_seq_len=8)
    with pytest.raises(
        ExecutionError, match="has no shapes for the specialization 'prefill', so it is not the one of this"
    ):
        open_session(replace(longer, directory=llama_program.directory))
    renamed = StateSpec(input="past_key.7", output="past_key.7_RetainedState")
    with pytest.raises(ExecutionError, match=r"the program lacks past_key\.7, so it is not the one of this artifact"):
        open_session(replace(llama_program, states=(renamed, *llama_program.states[1:])))
    sdk.assert_released()


def test_standin_failed_step_needs_a_reset(llama_session, monkeypatch) -> None:
    with monkeypatch.context() as faults:
        faults.setenv(*fault_environment(runtime={"ExecObj.waitForCompletion": CallFault(status=300)}).popitem())
        with pytest.raises(ExecutionError, match=r"running a step failed with QS_DEV_ERROR \(300\)"):
            llama_session.run(feed(1, 0))
    with pytest.raises(ExecutionError, match=r"call reset\(\)"):
        llama_session.run(feed(1, 0))
    llama_session.reset()
    assert np.isfinite(llama_session.run(feed(1, 0))["logits"]).all()


@pytest.mark.parametrize(
    ("call", "fault", "error", "message"),
    [
        ("Program.load", CallFault(status=5), BackendUnavailableError, "QAIC_VISIBLE_DEVICES"),
        ("Program.activate", CallFault(status=7), ExecutionError, "needs 2 cores.*Nsp Free"),
        ("ExecObj", CallFault(raises="QAIC_ERROR_NSP_ALLOC_FAILED: no"), ExecutionError, "NSP_ALLOC_FAILED.*Nsp Free"),
        ("Qpc", CallFault(raises="truncated"), ExecutionError, "holds no program that the runtime can read"),
        ("Context", CallFault(raises="no access"), BackendUnavailableError, "cannot open a device: no access"),
    ],
    ids=["load", "activate", "exec", "qpc", "context"],
)
def test_standin_failures_while_opening_give_the_device_back(
    call, fault, error, message, standin, llama_program, monkeypatch
) -> None:
    sdk = standin()
    monkeypatch.setenv(*fault_environment(runtime={call: fault}).popitem())
    with pytest.raises(error, match=message):
        open_session(llama_program)
    sdk.assert_released()


def test_standin_interruption_while_opening_gives_the_device_back(standin, llama_program, monkeypatch) -> None:
    """Between the activation, which takes the cores, and the session that would give them back."""
    sdk = standin()
    open_session(llama_program).close()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["qaicrt"], "ExecObj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_session(llama_program)
    sdk.assert_released()


@pytest.mark.parametrize("profile", ["legacy", "1.22"])
def test_standin_time_limit_has_the_name_that_the_sdk_knows(profile, standin, llama_program, monkeypatch) -> None:
    standin(profile=profile)
    session = open_session(llama_program, timeout_ms=100)
    with monkeypatch.context() as faults:
        faults.setenv(*fault_environment(runtime={"execute": CallFault(sleep_seconds=1)}).popitem())
        with pytest.raises(ExecutionError, match=r"QS_TIMEDOUT \(9\).*timeout_ms"):
            session.run(feed(1, 0))
    # The device gives the program back once the late step has ended.
    time.sleep(1.5)
    session.close()


def test_standin_four_devices_of_one_board(
    standin, llama_export: ExportedModel, llama_program: CompiledModel, tmp_path: Path
) -> None:
    sdk = standin(devices="two_boards")
    one = open_session(llama_program)
    expected = continuation(one, PROMPTS[:1], chunk=CHUNK, new_tokens=4)
    one.close()
    compiled = compile_program(llama_export, tmp_path / "four", num_devices=4)
    session = open_session(compiled)
    assert [qid for qid, used in sdk.nsps_in_use().items() if used] == [0, 1, 2, 3]
    assert continuation(session, PROMPTS[:1], chunk=CHUNK, new_tokens=4) == expected
    session.close()
    session = open_session(compiled, device_ids=(4, 5, 6, 7))
    assert [qid for qid, used in sdk.nsps_in_use().items() if used] == [4, 5, 6, 7]
    session.close()
    with pytest.raises(OptionError, match="names 1 devices, the program was compiled for num_devices=4"):
        open_session(compiled, device_ids=(0,))


def test_standin_mxint8_cache_and_mxfp6_weights_stay_close(standin, llama_export, llama_program, tmp_path) -> None:
    standin()
    logits = []
    small = compile_program(llama_export, tmp_path / "small", mxint8_kv_cache=True, mxfp6_matmul=True)
    for compiled in (llama_program, small):
        session = open_session(compiled)
        session.run(feed(7, 0))
        session.reset()
        session.run(feed(7, 0))
        logits.append(session.run(feed(8, 1))["logits"].ravel().copy())
        session.close()
    assert not np.array_equal(*logits)
    assert np.corrcoef(*logits)[0, 1] > 0.95


def test_standin_positions_beyond_2048_survive_fp16_arithmetic(standin, tmp_path, monkeypatch) -> None:
    """With FP16 behind every node, angles that the device computed itself are wrong by radians; the window makes it matter."""
    module, _ = tiny_causal_lm("mistral")
    (tmp_path / "export").mkdir()
    exported = export_portable(module, task="causal-lm", output_dir=tmp_path / "export")
    feeds = {"input_ids": np.array([[7, 8, 90, 33]]), "position_ids": np.array([[4097, 4098, 4099, 4100]])}
    expected = PortableLoop(exported, batch_size=1, ctx_len=4352).step(**feeds)[0]
    standin()
    monkeypatch.setenv(ROUNDING_VARIABLE, "every_node")

    def error(name: str) -> float:
        session = open_session(compile_program(exported, tmp_path / name, ctx_len=4352))
        logits = session.run(feeds)["logits"][0, 0].copy()
        session.close()
        return float(np.abs(logits - expected).max() / np.abs(expected).max())

    with_tables = error("tables")
    monkeypatch.setattr(RotaryTables, "__call__", lambda self, model: False)
    computed_on_device = error("computed")
    assert with_tables < 0.02 < 10 * with_tables < computed_on_device


def test_missing_runtime_names_the_module_and_the_remedy(standin, llama_export, tmp_path) -> None:
    standin(without={"runtime"})
    compiled = compile_program(llama_export, tmp_path / "program")
    with pytest.raises(BackendUnavailableError, match=r"qaicrt does not load in Python 3.*Platform SDK"):
        open_session(compiled)


def test_standin_two_programs_take_turns_on_one_device(standin, llama_export, tmp_path) -> None:
    """All cores of the device are one program's; the other one gets them when the first is closed, and starts from nothing."""
    sdk = standin()
    compiled = compile_program(llama_export, tmp_path / "program", num_cores=16)
    first = open_session(compiled, device_ids=(0,))
    answer = first.run(feed(7, 0))["logits"].copy()
    first.run(feed(8, 1))
    with pytest.raises(ExecutionError, match="Nsp Free"):
        open_session(compiled, device_ids=(0,))
    assert sdk.nsps_in_use()[0] == 16
    first.close()
    second = open_session(compiled, device_ids=(0,))
    np.testing.assert_array_equal(second.run(feed(7, 0))["logits"], answer)
    second.close()


def test_standin_sessions_of_several_threads(standin, llama_export, tmp_path) -> None:
    """One session per thread, on different devices and on one; and a single session that two threads step in turns."""
    standin(devices="ultra")
    compiled = compile_program(llama_export, tmp_path / "program", num_cores=4)
    alone = open_session(compiled, device_ids=(0,))
    expected = continuation(alone, PROMPTS[:1], chunk=CHUNK, new_tokens=4)
    shared = alone.run(feed(7, 0))["logits"].copy()

    def generate(qid: int) -> list[list[int]]:
        session = open_session(compiled, device_ids=(qid,))
        try:
            return continuation(session, PROMPTS[:1], chunk=CHUNK, new_tokens=4)
        finally:
            session.close()

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(generate, (1, 1, 2))) == [expected] * 3
        # Position 0 sees itself only, so every step has the same answer unless two of them mix their buffers.
        steps = list(threads.map(lambda _: alone.run(feed(7, 0))["logits"].copy(), range(24)))
    assert all(np.array_equal(step, shared) for step in steps)
    alone.close()
