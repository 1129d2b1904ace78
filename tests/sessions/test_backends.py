"""The promise is the same for every backend: what a session refuses, in which words, and that nothing has changed then.

``qaic`` runs on the stand-in of its SDK, ``qnn`` in Qualcomm's simulator of the NPU.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ort_sim_backend import OrtSimBackend
from qaic_backend import QaicBackend
from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework.contracts import ExecuteRequest, Specialization, StateSpec
from qeff_framework.errors import ExecutionError, InputError
from qnn_backend import QnnBackend
from tests.lowering.graphs import parse
from tests.plugins.ort_sim_backend.programs import export
from tests.plugins.programs import compile_with
from tests.plugins.qnn_backend.htp.simulator import needs_simulator
from tests.sdk_standins.qaic import install_standin

CTX_LEN, WIDTH = 9, 8
BACKENDS = {
    "ort_sim": (OrtSimBackend, {}),
    "standin qaic": (QaicBackend, {"num_cores": 2}),
    "qnn": (QnnBackend, {"verify": False}),
}

#: One attention layer over embedded tokens, with its own keys as values.
LAYER = """
layer (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] position_ids BATCH_INDEX,
       float[CACHE_ROWS, 1, ctx_len, 8] past_key)
=> (float[batch_size, 1, seq_len, 8] attended, float[CACHE_ROWS, 1, ctx_len, 8] past_key_RetainedState)
<float[16, 8] table = {WEIGHTS}, int64 zero = {0}, int64 one = {1}, int64[1] heads = {1},
 float[batch_size, seq_len, 8] tokens, float[batch_size, 1, seq_len, 8] keys, float[batch_size, 1, ctx_len, 8] cache,
 int64[ctx_len] slots, bool[batch_size, 1, seq_len, ctx_len] mask>
{
    tokens = Gather (table, input_ids)
    keys = Unsqueeze (tokens, heads)
    size = Shape <start = 2, end = 3> (past_key)
    limit = Squeeze (size)
    slots = Range (zero, limit, one)
    mask = qeff.CausalMask <window = 0, chunk = 0> (position_ids, slots)
    UPDATE
    attended = qeff.Attention <scale: float = 0.4, softcap: float = 0.0> (keys, cache, cache, mask)
}
"""
PLAIN = {
    "BATCH_INDEX": "",
    "CACHE_ROWS": "batch_size",
    "UPDATE": """past_key_RetainedState = qeff.KVUpdate (past_key, keys, position_ids)
                 cache = Identity (past_key_RetainedState)""",
}
CONTINUOUS = {
    "BATCH_INDEX": ", int64[batch_size, 1] batch_index",
    "CACHE_ROWS": "full_batch_size",
    "UPDATE": """past_key_RetainedState = qeff.KVUpdateCB (past_key, keys, position_ids, batch_index)
                 cache = qeff.KVGatherCB (past_key_RetainedState, batch_index, slots)""",
}
PROMPT = np.array([[0, 1, 2, 3], [0, 1, -1, -1]])


def feeds(position_ids: Any, **others: Any) -> dict[str, Any]:
    """Inputs of a step whose tokens depend on the positions."""
    positions = np.array(position_ids)
    return {"input_ids": (5 * positions + 3) % 16, "position_ids": positions, **others}


def layer(parts: dict[str, str]) -> Any:
    weights = np.random.default_rng(0).standard_normal(16 * WIDTH)
    text = LAYER.replace("WEIGHTS", ", ".join(f"{weight:.4f}" for weight in weights))
    for name, part in parts.items():
        text = text.replace(name, part)
    return parse(text)


@contextlib.contextmanager
def program(name: str, folder: Path, parts: dict[str, str], **dims: int) -> Iterator[Callable[[], Any]]:
    """Opens sessions of a program for steps of 4 tokens and of 1 token, two rows, and a context of 9 slots."""
    backend, options = BACKENDS[name]
    module, _, cls = backend.implementation.partition(":")
    hooks = getattr(importlib.import_module(module), cls)()
    shapes = [
        Specialization(name=step, dims={"batch_size": 2, "ctx_len": CTX_LEN, "seq_len": length, **dims})
        for step, length in (("prefill", 4), ("decode", 1))
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        if name == "standin qaic":
            sdk = install_standin(folder / "sdk")
            patch.setenv(ROOT_VARIABLE, str(sdk.root))
            stack.enter_context(sdk.clean_imports())
        exported = export(
            layer(parts), folder / "export", states=[StateSpec(input="past_key", output="past_key_RetainedState")]
        )
        compiled = compile_with(hooks, backend.options(**options), exported, folder / "program", shapes)
        request = ExecuteRequest(compiled=compiled, options=backend.runtime_options())
        yield lambda: stack.enter_context(hooks.execute(request))


@pytest.fixture(scope="module", params=[*list(BACKENDS)[:2], pytest.param("qnn", marks=needs_simulator)])
def open_session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with program(request.param, tmp_path_factory.mktemp("plain"), PLAIN) as open_session:
        yield open_session


@pytest.fixture(scope="module")
def shared_session(open_session: Callable[[], Any]) -> Any:
    return open_session()


@pytest.fixture
def session(shared_session: Any) -> Any:
    shared_session.reset()
    return shared_session


NOT_THESE = "the inputs of the step do not fit the model"
SHAPES = (
    "Compiled are prefill: input_ids [2, 4], position_ids [2, 4]; decode: input_ids [2, 1], position_ids [2, 1]. "
    "Pad the inputs to one of them or compile another specialization"
)
IN_FRONT = (
    "the tokens of a row stand in front of its padding (-1), and their positions rise by one from token to token; move the tokens "
    "to the front"
)
TOO_LONG = (
    "does not fit into the context: ctx_len is 9, the last position is 8. Stop earlier or compile with a larger ctx_len"
)
REFUSED = {
    "length": (
        feeds([[4, 5], [2, 3]]),
        f"no compiled specialization has the shapes input_ids [2, 2], position_ids [2, 2]. {SHAPES}",
    ),
    "rows": (feeds([[4]]), f"no compiled specialization has the shapes input_ids [1, 1], position_ids [1, 1]. {SHAPES}"),
    "dtype": (
        {**feeds([[4], [2]]), "input_ids": np.zeros((2, 1), np.int32)},
        "input input_ids is int32, the model takes int64",
    ),
    "missing": (
        {"input_ids": np.zeros((2, 1), np.int64)},
        f"{NOT_THESE} (missing: position_ids). It takes input_ids, position_ids",
    ),
    "unknown": (
        feeds([[4], [2]], mask=np.zeros(1)),
        f"{NOT_THESE} (unknown: mask). It takes input_ids, position_ids",
    ),
    "state": (
        feeds([[4], [2]], past_key=np.zeros((2, 1, CTX_LEN, WIDTH), np.float32)),
        f"{NOT_THESE} (retained states, which stay with the session: past_key). It takes input_ids, position_ids",
    ),
    "gap": (
        feeds([[4, 5, 6, 7], [2, -1, 4, 5]]),
        f"position_ids of row 1 are [2, -1, 4, 5]: {IN_FRONT}",
    ),
    "padding in front": (
        feeds([[4, 5, 6, 7], [-1, -1, 2, 3]]),
        f"position_ids of row 1 are [-1, -1, 2, 3]: {IN_FRONT}",
    ),
    "context": (
        feeds([[4, 5, 6, 7], [6, 7, 8, 9]]),
        f"position 9 of row 1 {TOO_LONG}",
    ),
    "context, one token": (
        feeds([[9], [2]]),
        f"position 9 of row 0 {TOO_LONG}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_the_same_is_refused_in_the_same_words_and_changes_nothing(session: Any, case: str) -> None:
    inputs, message = REFUSED[case]
    following = feeds([[4], [2]])
    session.run(feeds(PROMPT))
    expected = session.run(following)["attended"].copy()
    session.reset()
    session.run(feeds(PROMPT))
    with pytest.raises(InputError) as caught:
        session.run(inputs)
    assert str(caught.value) == message
    np.testing.assert_array_equal(session.run(following)["attended"], expected)


def test_a_row_that_begins_at_position_0_sees_nothing_of_the_last_one(session: Any) -> None:
    first = session.run(feeds(PROMPT))["attended"].copy()
    assert not np.allclose(session.run(feeds([[4, 5, 6, 7], [4, 5, 6, 7]]))["attended"], first)
    again = session.run(feeds(PROMPT))["attended"]
    valid = np.broadcast_to((PROMPT >= 0)[:, None], (2, 1, 4))
    np.testing.assert_array_equal(again[valid], first[valid])


def test_outputs_are_what_the_model_declares(session: Any) -> None:
    [spec] = [spec for spec in session.compiled.outputs if not spec.name.endswith("_RetainedState")]
    outputs = session.run(feeds([[0], [0]]))
    assert [*outputs] == [spec.name]
    assert (outputs[spec.name].shape, str(outputs[spec.name].dtype)) == ((2, 1, 1, WIDTH), spec.dtype)


def test_a_closed_session_does_nothing(open_session: Callable[[], Any]) -> None:
    with open_session() as session:
        session.run(feeds(PROMPT))
    session.close()
    for call in (session.reset, lambda: session.run(feeds(PROMPT))):
        with pytest.raises(ExecutionError, match=r"^the session is closed: make a new one from the compiled model$"):
            call()


@pytest.mark.parametrize("name", ["ort_sim", "standin qaic"])
def test_rows_of_a_step_need_cache_rows_of_their_own(name: str, tmp_path: Path) -> None:
    with program(name, tmp_path, CONTINUOUS, full_batch_size=3) as open_session:
        session = open_session()
        alone = session.run(feeds(PROMPT, batch_index=np.array([[2], [0]])))["attended"].copy()
        for rows in ([1, 1], [-1, 0], [3, 0]):
            with pytest.raises(InputError) as caught:
                session.run(feeds(PROMPT, batch_index=np.array(rows)[:, None]))
            assert str(caught.value) == (
                f"batch_index is {rows}; each row of a step, padding included, needs a cache row of its own, from 0 to 2"
            )
        swapped = session.run(feeds(PROMPT, batch_index=np.array([[0], [1]])))["attended"]
        np.testing.assert_allclose(swapped[0], alone[0], atol=1e-6)
