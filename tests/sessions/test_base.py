"""The life of a session: steps, failures, reset, close, threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError
from tests.sessions.programs import Adder, feeds, program


def test_shapes_choose_the_step_and_states_stay_until_reset() -> None:
    session = Adder(program())
    assert isinstance(session, ExecutionSession)
    assert [item.name for item in session.specializations] == ["prefill", "decode"]
    buffer = session.states["past"]
    assert session.run(feeds([[0, 1, 2, 3], [0, 1, -1, -1]]))["total"].tolist() == [10, 3]
    # A list is an array to the caller; the rows of the cache are named by batch_index.
    assert session.run({**feeds([[4], [0]]), "batch_index": [[0], [2]]})["total"].tolist() == [15, 1]
    assert session.steps == ["prefill", "decode"]
    assert session.states["past"] is buffer, "allocated once"

    session.reset()
    assert session.run(feeds([[1], [-1]]))["total"].tolist() == [2, 0]


def test_states_go_from_one_session_to_another() -> None:
    first, second = Adder(program()), Adder(program())
    first.run(feeds([[0, 1, 2, 3], [0, 1, -1, -1]]))
    states = first.read_states()
    assert list(states) == ["past"]
    first.run(feeds([[4], [2]]))
    second.write_states(states)
    assert second.run(feeds([[4], [2]]))["total"].tolist() == [15, 6]
    assert first.read_states(["past"])["past"].tolist() == second.states["past"].tolist()
    for wrong, message in (
        ({"future": states["past"]}, "no state future; it has past"),
        ({"past": states["past"][:2]}, r"the state past is int64 \[3, 8\], and int64 \[2, 8\] was given"),
        ({"past": states["past"].astype("float32")}, "and float32"),
    ):
        with pytest.raises(InputError, match=message):
            second.write_states(wrong)
    with pytest.raises(InputError, match="it has none"):
        Adder(program(states=False)).read_states(["past"])
    first.failure = ExecutionError("gone")
    with pytest.raises(ExecutionError, match="gone"):
        first.run(feeds([[5], [3]]))
    for call in (first.read_states, lambda: first.write_states(states)):
        with pytest.raises(ExecutionError, match=r"undefined: call reset\(\)"):
            call()


@pytest.mark.parametrize("failure", [ExecutionError("the device is gone"), KeyboardInterrupt()], ids=type)
def test_a_failed_step_needs_a_reset(failure: BaseException) -> None:
    session = Adder(program())
    session.failure = failure
    with pytest.raises(type(failure)):
        session.run(feeds([[0], [0]]))
    session.failure = None
    with pytest.raises(ExecutionError, match=r"undefined: call reset\(\)"):
        session.run(feeds([[1], [1]]))
    session.reset()
    assert session.run(feeds([[1], [1]]))["total"].tolist() == [2, 2]


def test_refused_inputs_and_programs_without_state_need_no_reset() -> None:
    session = Adder(program())
    for inputs in (feeds([[8], [8]]), feeds([[0], [0]])):
        session.failure = InputError("the session's own check")
        with pytest.raises(InputError):
            session.run(inputs)
    session.failure = None
    assert session.steps == ["decode"]
    assert session.run(feeds([[0], [0]]))["total"].tolist() == [1, 1]

    stateless = Adder(program(states=False))
    stateless.failure = ExecutionError("once")
    with pytest.raises(ExecutionError, match="once"):
        stateless.run(feeds([[0], [0]]))
    stateless.failure = None
    assert stateless.run(feeds([[0], [0]]))["total"].tolist() == [1, 1]


def test_a_closed_session_does_nothing() -> None:
    with Adder(program()) as session:
        session.run(feeds([[0], [0]]))
    session.close()
    assert session.releases == 1
    assert not session.states
    for call in (session.reset, lambda: session.run(feeds([[0], [0]])), lambda: session.run({})):
        with pytest.raises(ExecutionError, match="closed"):
            call()


def test_threads_take_turns_and_close_waits() -> None:
    session, started, go_on = Adder(program()), threading.Event(), threading.Event()
    inside = 0

    def run_step(specialization: object, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal inside
        inside += 1
        assert inside == 1
        started.set()
        assert go_on.wait(10)
        assert not session.releases, "the device was given back under a step"
        inside -= 1
        return {"total": np.zeros(2, np.int64)}

    session.run_step = run_step  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(session.run, feeds([[0], [0]]))
        assert started.wait(10)
        closing = threads.submit(session.close)
        assert not closing.done()
        go_on.set()
        assert first.result(10)["total"].tolist() == [0, 0]
        closing.result(10)
    assert session.releases == 1
