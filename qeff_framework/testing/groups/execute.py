"""Sessions: steps, retained states, padding, refusals."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.testing.checks import BrokenPromiseError, check, require
from qeff_framework.testing.comparing import difference, require_close
from qeff_framework.testing.layers import (
    QUERIES,
    SLOTS,
    STEPS,
    Layer,
    LayerReference,
    cached_layer,
    feeds,
    heads,
    step_inputs,
    valid_part,
)
from qeff_framework.testing.programs import CACHE_ROWS, CHUNK, CTX_LEN, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.testing.layers import Arrays
    from qeff_framework.testing.subject import Subject

ATTENTION = """
    mask = qeff.CausalMask <window = 0, chunk = 0> (position_ids, slots)
    logits = qeff.Attention <scale: float = 0.5, softcap: float = 0.0> (queries, KEYS, VALUES, mask)
"""
#: One chunk that holds a whole prompt, for the comparison with several.
LONG = 8


def _attention(inputs: Arrays, states: Arrays, table: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    from qeff_framework.dialect import reference

    rows = inputs["batch_index"][:, 0] if "batch_index" in inputs else slice(None)
    mask = reference.causal_mask(inputs["position_ids"], np.arange(CTX_LEN))
    queries = heads(table, inputs["input_ids"], 4)
    return reference.attention(queries, states["past_key.0"][rows], states["past_value.0"][rows], mask, scale=0.5)


@functools.cache
def attention_layer() -> Layer:
    """Grouped attention over a cache of two rows; steps of 8, 4 and 1 tokens."""
    layer = cached_layer(
        "attention_layer",
        SLOTS
        + QUERIES
        + ATTENTION.replace("KEYS", "past_key_0_RetainedState").replace("VALUES", "past_value_0_RetainedState"),
        lambda inputs, states: _attention(inputs, states, layer.constants["query_table"]),
        output="batch_size, 4, seq_len, 4",
        specializations=steps_of(CHUNK, 1, LONG),
    )
    return layer


@functools.cache
def continuous_layer() -> Layer:
    """The same with continuous batching: three rows of the cache, two in a step."""
    gathered = """
    keys_read = qeff.KVGatherCB (past_key_0_RetainedState, batch_index, slots)
    values_read = qeff.KVGatherCB (past_value_0_RetainedState, batch_index, slots)
    """
    layer = cached_layer(
        "continuous_layer",
        SLOTS + QUERIES + gathered + ATTENTION.replace("KEYS", "keys_read").replace("VALUES", "values_read"),
        lambda inputs, states: _attention(inputs, states, layer.constants["query_table"]),
        output="batch_size, 4, seq_len, 4",
        continuous=True,
        specializations=steps_of(CHUNK, 1, full_batch_size=CACHE_ROWS),
    )
    return layer


def with_cache(subject: Subject) -> ExecutionSession:
    """The shared session of `attention_layer`, its states empty."""
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    return subject.session(attention_layer().program)


def output_of(session: ExecutionSession, inputs: Arrays) -> NDArray[Any]:
    """``logits`` of a step, as a copy."""
    found: NDArray[Any] = session.run(inputs)["logits"].copy()
    return found


def follow(subject: Subject, session: ExecutionSession, layer: Layer, *, padding: str = "large", text: int = 0) -> None:
    """Runs `STEPS` and compares each with the reference."""
    reference = LayerReference(layer)
    for number, inputs in enumerate(step_inputs(layer, padding=padding, text=text)):
        got = output_of(session, inputs)
        expected = reference.step(inputs)
        told = f"step {number}, position_ids {inputs['position_ids'].tolist()}"
        require_close(subject, valid_part(layer, inputs, got), valid_part(layer, inputs, expected), told)


# --- steps and states -------------------------------------------------------------------------------------------------


@check("execute")
def check_states_are_retained(subject: Subject) -> None:
    """What a step writes into the states is there in the next one, chunk after chunk and token after token."""
    follow(subject, with_cache(subject), attention_layer())


@check("execute")
def check_reset(subject: Subject) -> None:
    """`reset` makes the states what they were after loading."""
    session = with_cache(subject)
    first = [output_of(session, inputs) for inputs in step_inputs(attention_layer())]
    other = [output_of(session, inputs) for inputs in step_inputs(attention_layer(), text=1)]
    require(
        not all(_same(a, b) for a, b in zip(first, other, strict=True)), "two different texts give the same outputs"
    )
    session.reset()
    for number, inputs in enumerate(step_inputs(attention_layer())):
        valid = functools.partial(valid_part, attention_layer(), inputs)
        require_close(
            subject,
            valid(output_of(session, inputs)),
            valid(first[number]),
            f"step {number} after reset() differs from the same step after loading",
        )
    # Decoding at once, from empty states: whatever is left of the text before would be seen.
    session.reset()
    reference, inputs = LayerReference(attention_layer()), feeds([[CTX_LEN - 1], [CTX_LEN - 1]])
    require_close(subject, output_of(session, inputs), reference.step(inputs), "a step after reset() sees old states")


@check("execute")
def check_chunks_equal_one_pass(subject: Subject) -> None:
    """A prompt read in chunks gives what it gives in one pass, and so do tokens one by one."""
    session = with_cache(subject)
    whole = feeds([range(LONG), range(LONG)])
    expected = output_of(session, whole)
    for length in (CHUNK, 1):
        session.reset()
        for start in range(0, LONG, length):
            part = {name: array[:, start : start + length].copy() for name, array in whole.items()}
            require_close(
                subject,
                output_of(session, part),
                expected[:, :, start : start + length],
                f"a prompt in chunks of {length} differs from one pass, at position {start}",
            )


@check("execute")
def check_row_that_begins_anew(subject: Subject) -> None:
    """A row whose step begins at position 0 sees nothing of the text before, without a reset."""
    session = with_cache(subject)
    prompt = [[0, 1, 2, 3], [0, 1, -1, -1]]
    first = output_of(session, feeds(prompt))
    for start in (4,):
        session.run(feeds([range(start, start + CHUNK)] * 2, text=2))
    again = output_of(session, feeds(prompt))
    inputs = feeds(prompt)
    require_close(
        subject,
        valid_part(attention_layer(), inputs, again),
        valid_part(attention_layer(), inputs, first),
        "a prompt gives something else after another text",
    )


@check("execute")
def check_rows_are_independent(subject: Subject) -> None:
    """What a row computes does not depend on what the other rows hold."""
    session = with_cache(subject)
    texts = [[[0, 1, 2, 3], [0, 1, 2, -1]], [[4], [3]], [[5], [4]]]
    together = [output_of(session, feeds(positions)) for positions in texts]
    session.reset()
    for number, positions in enumerate(texts):
        alone = feeds([positions[0], [-1] * len(positions[0])])
        got = output_of(session, alone)[0]
        require_close(subject, got, together[number][0], f"row 0 differs in step {number} when row 1 is all padding")


# --- padding ----------------------------------------------------------------------------------------------------------


@check("execute", cases=("large", "infinite", "nan"))
def check_padding_takes_no_part(subject: Subject, padding: str) -> None:
    """Tokens of padding write nothing and change nothing, whatever they hold."""
    follow(subject, with_cache(subject), attention_layer(), padding=padding)


@check("execute")
def check_all_padding_changes_nothing(subject: Subject) -> None:
    """A step whose rows are all padding leaves every state as it was."""
    session = with_cache(subject)
    session.run(feeds(STEPS[0]))
    following = feeds(STEPS[1])
    expected = output_of(session, following)
    session.reset()
    session.run(feeds(STEPS[0]))
    for length in (CHUNK, 1, LONG):
        session.run(feeds([[-1] * length] * 2, padding="nan"))
    require_close(subject, output_of(session, following), expected, "steps of padding have changed the states")


@check("execute")
def check_last_slot(subject: Subject) -> None:
    """The last position of the context can be used, by a chunk and by one token."""
    session, reference = with_cache(subject), LayerReference(attention_layer())
    for positions in ([range(LONG)] * 2, [[CTX_LEN - 1]] * 2, [range(CTX_LEN - CHUNK, CTX_LEN)] * 2):
        inputs = feeds(positions)
        require_close(subject, output_of(session, inputs), reference.step(inputs), f"positions {positions[0]}")


# --- what is refused ---------------------------------------------------------------------------------------------------


def _refused_steps() -> dict[str, Callable[[], Arrays]]:
    import numpy as np

    return {
        "length": lambda: feeds([[4, 5], [2, 3]]),
        "rows": lambda: feeds([[4]]),
        "dtype": lambda: {**feeds([[4], [2]]), "input_ids": np.zeros((2, 1), np.int32)},
        "rank": lambda: {**feeds([[4], [2]]), "input_ids": np.zeros((2, 1, 1), np.int64)},
        "missing input": lambda: {"input_ids": np.zeros((2, 1), np.int64)},
        "unknown input": lambda: feeds([[4], [2]], attention_mask=np.ones((2, 1), np.int64)),
        "retained state": lambda: {**feeds([[4], [2]]), "past_key.0": np.zeros((2, 2, CTX_LEN, 4), np.float32)},
        "padding in front": lambda: feeds([[4, 5, 6, 7], [-1, -1, 2, 3]]),
        "gap": lambda: feeds([[4, 5, 6, 7], [2, -1, 4, 5]]),
        "jump": lambda: feeds([[4, 5, 6, 8], [2, 3, 4, 5]]),
        "beyond the context": lambda: feeds([[6, 7, 8, 9], [2, 3, 4, 5]]),
        "one token beyond the context": lambda: feeds([[9], [2]]),
    }


_REFUSED = (
    "length",
    "rows",
    "dtype",
    "rank",
    "missing input",
    "unknown input",
    "retained state",
    "padding in front",
    "gap",
    "jump",
    "beyond the context",
    "one token beyond the context",
)


@check("execute", cases=_REFUSED)
def check_refused_step(subject: Subject, case: str) -> None:
    """A step that does not fit is refused with `InputError`, and the states are as they were."""
    session = with_cache(subject)
    wrong, following = _refused_steps()[case](), feeds([[4], [2]])
    session.run(feeds(STEPS[0]))
    expected = output_of(session, following)
    session.reset()
    session.run(feeds(STEPS[0]))
    with refused(InputError, f"a step with wrong {case}"):
        session.run(wrong)
    require_close(subject, output_of(session, following), expected, "the refused step has changed the states")


@check("execute", cases=("named twice", "negative", "too large"))
def check_refused_cache_rows(subject: Subject, case: str) -> None:
    """With continuous batching each row of a step needs a row of the cache of its own."""
    import numpy as np

    session = continuous(subject)
    rows = {"named twice": [1, 1], "negative": [-1, 0], "too large": [CACHE_ROWS, 0]}[case]
    with refused(InputError, f"batch_index {rows}"):
        session.run(feeds(STEPS[0], batch_index=np.array(rows)[:, None]))


def continuous(subject: Subject) -> ExecutionSession:
    """The shared session of `continuous_layer`, its states empty."""
    subject.need(subject.capabilities.continuous_batching, "continuous_batching")
    return subject.session(continuous_layer().program)


@check("execute", cases=("large", "nan"))
def check_continuous_batching(subject: Subject, padding: str) -> None:
    """Rows of a step read and write the rows of the cache that `batch_index` names, in any order, and no others."""
    import numpy as np

    session = continuous(subject)
    follow(subject, session, continuous_layer(), padding=padding)
    session.reset()
    reference = LayerReference(continuous_layer())
    # Three texts share two rows of a step: each is continued after the others have run.
    for positions, rows in (
        (STEPS[0], [0, 2]),
        ([range(CHUNK)] * 2, [1, 0]),
        ([[4], [2]], [1, 2]),
        ([[-1], [4]], [2, 0]),
        ([[3], [5]], [2, 0]),
    ):
        inputs = feeds(positions, padding=padding, batch_index=np.array(rows)[:, None])
        got, expected = output_of(session, inputs), reference.step(inputs)
        valid = functools.partial(valid_part, continuous_layer(), inputs)
        require_close(subject, valid(got), valid(expected), f"cache rows {rows}")


# --- sessions ----------------------------------------------------------------------------------------------------------


@check("execute")
def check_outputs_are_as_declared(subject: Subject) -> None:
    """A step returns the outputs that are no states, with the declared dtypes and shapes."""
    import numpy as np

    session = with_cache(subject)
    for positions in (STEPS[0], STEPS[1]):
        outputs = session.run(feeds(positions))
        require(
            [*outputs] == ["logits"], f"a step returned {sorted(outputs)}, not only logits: states stay in the session"
        )
        value = outputs["logits"]
        require(isinstance(value, np.ndarray), f"logits is {type(value).__name__}, not a NumPy array")
        found, wanted = (str(value.dtype), value.shape), ("float32", (2, 4, len(positions[0]), 4))
        require(found == wanted, f"logits is {found[0]} {list(found[1])}, declared is {wanted[0]} {list(wanted[1])}")


@check("execute")
def check_inputs_are_left_alone(subject: Subject) -> None:
    """A step takes arrays of any memory layout, read-only ones included, and does not change them."""
    import numpy as np

    session = with_cache(subject)
    inputs = feeds(STEPS[0])
    expected = output_of(session, inputs)
    session.reset()
    odd = {name: np.asfortranarray(array) for name, array in inputs.items()}
    for array in odd.values():
        array.flags.writeable = False
    before = {name: array.copy() for name, array in odd.items()}
    got = output_of(session, odd)
    require_close(
        subject,
        valid_part(attention_layer(), inputs, got),
        valid_part(attention_layer(), inputs, expected),
        "inputs in column-major order give something else",
    )
    require(all(_same(odd[name], before[name]) for name in odd), "the step has changed its inputs")


@check("execute")
def check_two_sessions(subject: Subject) -> None:
    """Two sessions of one program have states of their own."""
    compiled = subject.compiled(attention_layer().program)
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    sessions = [subject.open(compiled), subject.open(compiled)]
    references = [LayerReference(attention_layer()) for _ in sessions]
    texts = [list(step_inputs(attention_layer(), text=text)) for text in range(2)]
    for number, both in enumerate(zip(*texts, strict=True)):
        for which, inputs in enumerate(both):
            got, expected = output_of(sessions[which], inputs), references[which].step(inputs)
            valid = functools.partial(valid_part, attention_layer(), inputs)
            require_close(subject, valid(got), valid(expected), f"session {which} of two, step {number}")
    sessions[0].close()
    output_of(sessions[1], feeds(STEPS[0]))
    sessions[1].close()


@check("execute")
def check_close(subject: Subject) -> None:
    """`close` can be called twice, and afterwards every other call raises `ExecutionError`."""
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    session = subject.open(subject.compiled(attention_layer().program))
    session.run(feeds(STEPS[0]))
    session.close()
    session.close()
    with refused(ExecutionError, "run() of a closed session"):
        session.run(feeds(STEPS[0]))
    with refused(ExecutionError, "reset() of a closed session"):
        session.reset()
    session.close()


@check("execute")
def check_info(subject: Subject) -> None:
    """A session says where it runs: `info` holds ``device`` and ``simulator`` (yes or no), and agrees with the probe."""
    session = with_cache(subject)
    info = dict(session.info)
    require("device" in info, f"info is {info}: it names no 'device'")
    told = info.get("simulator")
    require(told in ("yes", "no"), f"info is {info}: 'simulator' must be 'yes' or 'no'")
    if subject.probe.can_execute and not subject.settings.options:
        # A runtime for the host's CPU simulates nothing, and is no accelerator.
        on_host = str(info["device"]).upper().startswith("CPU")
        agrees = told == "no" if subject.probe.hardware else told == "yes" or on_host
        require(agrees, f"info says {info}, probe() says hardware={subject.probe.hardware}")


@check("execute")
def check_results_are_repeatable(subject: Subject) -> None:
    """The same steps from the same states give the same numbers, bit for bit."""
    session = with_cache(subject)
    runs = []
    for _ in range(2):
        session.reset()
        runs.append([output_of(session, inputs) for inputs in step_inputs(attention_layer())])
    for number, (one, other, inputs) in enumerate(zip(*runs, step_inputs(attention_layer()), strict=True)):
        valid = functools.partial(valid_part, attention_layer(), inputs)
        require(_same(valid(one), valid(other)), f"step {number} differs when it is repeated: {difference(one, other)}")


@contextlib.contextmanager
def refused(error: type[Exception], what: str) -> Iterator[None]:
    """The block must raise `error`."""
    try:
        yield
    except error:
        return
    except Exception as other:
        raise BrokenPromiseError(
            f"{what} raised {type(other).__name__} instead of {error.__name__}: {other}"
        ) from other
    raise BrokenPromiseError(f"{what} was accepted; {error.__name__} must be raised before anything changes")


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    import numpy as np

    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
