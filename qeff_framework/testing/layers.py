"""One op of the dialect in a program of its own, and what the reference makes of the same steps.

A layer looks up what the op takes in tables by the token ids, and returns what the op computes as ``logits``. The last ids stand
for tokens that hold what no arithmetic survives: `POISON` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import StateSpec
from qeff_framework.testing.programs import CACHE_ROWS, ROWS, VOCAB, SmallProgram

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
    Ints = NDArray[np.int64]
    Arrays = dict[str, NDArray[Any]]

#: What tokens of padding hold, and their ids: large numbers, infinities, NaN.
POISON: Final[Mapping[str, int]] = {"large": VOCAB - 3, "infinite": VOCAB - 2, "nan": VOCAB - 1}
#: Ids of ordinary tokens.
PLAIN_IDS: Final = VOCAB - len(POISON)

#: Positions of the steps of a text: full, partly filled and empty chunks, a context that is filled to its last slot, and a row
#: that begins anew while the other waits.
STEPS: Final = (
    ((0, 1, 2, 3), (0, 1, -1, -1)),
    ((4,), (2,)),
    ((5, 6, -1, -1), (-1, -1, -1, -1)),
    ((7,), (3,)),
    ((8,), (-1,)),
    ((-1, -1, -1, -1), (0, 1, 2, -1)),
    ((-1,), (3,)),
)

_CACHED = """
layer (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] position_ids{MORE},
       float[{CACHE}, {KEY_HEADS}, ctx_len, {DIM}] past_key_0, float[{CACHE}, {KEY_HEADS}, ctx_len, {VALUE_DIM}] past_value_0)
=> (float[{OUTPUT}] logits, float[{CACHE}, {KEY_HEADS}, ctx_len, {DIM}] past_key_0_RetainedState,
    float[{CACHE}, {KEY_HEADS}, ctx_len, {VALUE_DIM}] past_value_0_RetainedState)
{
    flat_keys = Gather (key_table, input_ids)
    split_keys = Reshape (flat_keys, key_split)
    keys = Transpose <perm = [0, 2, 1, 3]> (split_keys)
    flat_values = Gather (value_table, input_ids)
    split_values = Reshape (flat_values, value_split)
    values = Transpose <perm = [0, 2, 1, 3]> (split_values)
    {UPDATE}
    {BODY}
}
"""
_UPDATE = """
    past_key_0_RetainedState = qeff.KVUpdate (past_key_0, keys, position_ids)
    past_value_0_RetainedState = qeff.KVUpdate (past_value_0, values, position_ids)
"""
_UPDATE_CB = """
    past_key_0_RetainedState = qeff.KVUpdateCB (past_key_0, keys, position_ids, batch_index)
    past_value_0_RetainedState = qeff.KVUpdateCB (past_value_0, values, position_ids, batch_index)
"""
_PLAIN = """
layer (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] position_ids) => (float[{OUTPUT}] logits)
{
    {BODY}
}
"""
#: Slots of the cache as a tensor, and queries.
SLOTS = """
    slot_count = Shape <start = 2, end = 3> (past_key_0)
    slot_limit = Squeeze (slot_count)
    slots = Range (zero, slot_limit, one)
"""
QUERIES = """
    flat_queries = Gather (query_table, input_ids)
    split_queries = Reshape (flat_queries, query_split)
    queries = Transpose <perm = [0, 2, 1, 3]> (split_queries)
"""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Heads of queries and of keys, sizes of a key and of a value."""

    query_heads: int = 4
    key_heads: int = 2
    key_dim: int = 4
    value_dim: int = 4


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A program and the reference of its steps."""

    program: SmallProgram
    #: ``logits`` of a step from its inputs and the states after their update, over rows of the step.
    expected: Callable[[Arrays, Arrays], NDArray[Any]]
    #: Axis of the output that counts the tokens of the step; `None` where it has none and every number is compared.
    token_axis: int | None = 2
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def tables(seed: int, **widths: int) -> Arrays:
    """Tables ``[VOCAB, width]`` by name, with numbers of about 1 and the poisoned rows at the end."""
    import numpy as np

    random = np.random.default_rng(seed)
    found: Arrays = {}
    for name, width in widths.items():
        table = random.standard_normal((VOCAB, width)).astype(np.float32)
        table[POISON["large"]], table[POISON["infinite"]], table[POISON["nan"]] = 1e4, np.inf, np.nan
        found[name] = table
    return found


def cached_layer(
    name: str,
    body: str,
    expected: Callable[[Arrays, Arrays], NDArray[Any]],
    *,
    output: str,
    sizes: Sizes | None = None,
    token_axis: int | None = 2,
    continuous: bool = False,
    more_inputs: str = "",
    constants: Mapping[str, NDArray[Any]] | None = None,
    **program: Any,
) -> Layer:
    """A layer with a cache of keys and values.

    Args:
        name: of the program.
        body: ONNX text that computes ``logits`` from ``queries`` (with `QUERIES`), the updated states and ``slots`` (`SLOTS`).
        expected: see `Layer`.
        output: shape of ``logits``.
        sizes: of the heads.
        token_axis: see `Layer`.
        continuous: rows of the step are rows of a larger cache.
        more_inputs: ONNX text of inputs behind ``position_ids``.
        constants: further constants of the body.
        **program: further fields of the program.
    """
    import numpy as np

    sizes = sizes or Sizes()
    found: Arrays = {
        **tables(
            1,
            key_table=sizes.key_heads * sizes.key_dim,
            value_table=sizes.key_heads * sizes.value_dim,
            query_table=sizes.query_heads * sizes.key_dim,
        ),
        "key_split": np.array([0, 0, sizes.key_heads, sizes.key_dim]),
        "value_split": np.array([0, 0, sizes.key_heads, sizes.value_dim]),
        "query_split": np.array([0, 0, sizes.query_heads, sizes.key_dim]),
        "zero": np.array(0),
        "one": np.array(1),
        **(constants or {}),
    }
    text = _filled(
        _CACHED,
        UPDATE=_UPDATE_CB if continuous else _UPDATE,
        BODY=body,
        MORE=f", int64[batch_size, 1] batch_index{more_inputs}" if continuous else more_inputs,
        CACHE="full_batch_size" if continuous else "batch_size",
        KEY_HEADS=sizes.key_heads,
        DIM=sizes.key_dim,
        VALUE_DIM=sizes.value_dim,
        OUTPUT=output,
    )
    used = _named_in(text, found)
    states = tuple(
        StateSpec(input=f"{each}.0", output=f"{each}.0_RetainedState") for each in ("past_key", "past_value")
    )
    return Layer(
        program=SmallProgram(name=name, graph=text, constants=used, states=states, **program),
        expected=expected,
        token_axis=token_axis,
        constants=found,
    )


def plain_layer(
    name: str,
    body: str,
    expected: Callable[[Arrays, Arrays], NDArray[Any]],
    *,
    output: str,
    constants: Mapping[str, NDArray[Any]],
    token_axis: int | None = 1,
) -> Layer:
    """A layer without states; the arguments are those of `cached_layer`."""
    text = _filled(_PLAIN, BODY=body, OUTPUT=output)
    used = _named_in(text, constants)
    return Layer(
        program=SmallProgram(name=name, graph=text, constants=used),
        expected=expected,
        token_axis=token_axis,
        constants=constants,
    )


def _named_in(text: str, constants: Mapping[str, NDArray[Any]]) -> Arrays:
    words = set(re.findall(r"\w+", text))
    return {name: array for name, array in constants.items() if name in words}


def _filled(text: str, **parts: object) -> str:
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", str(part))
    return text


def heads(table: Floats, ids: Ints, count: int) -> Floats:
    """Rows of `table` for the ids ``[B, S]`` as ``[B, count, S, D]``."""
    rows = table[ids]
    return rows.reshape(*ids.shape, count, -1).swapaxes(1, 2)


def feeds(positions: Sequence[Sequence[int]], *, padding: str = "large", text: int = 0, **more: Any) -> Arrays:
    """Inputs of a step; ids of tokens depend on row, position and `text`, padding is that of `POISON`."""
    import numpy as np

    position_ids = np.array(positions, dtype=np.int64)
    rows = np.arange(len(position_ids))[:, None]
    ids = (5 * position_ids + 7 * rows + 3 * text + 1) % PLAIN_IDS
    input_ids = np.where(position_ids >= 0, ids, POISON[padding])
    return {"input_ids": input_ids, "position_ids": position_ids, **more}


class LayerReference:
    """The states of a layer and what its steps return, by the reference semantics."""

    def __init__(self, layer: Layer, sizes: Sizes | None = None) -> None:
        import numpy as np

        self._layer, self._sizes = layer, sizes or Sizes()
        dims = layer.program.specializations[0].dims
        rows = dims.get("full_batch_size", dims["batch_size"])
        shape = (rows, self._sizes.key_heads, dims["ctx_len"])
        self.states: Arrays = {
            "past_key.0": np.zeros((*shape, self._sizes.key_dim), np.float32),
            "past_value.0": np.zeros((*shape, self._sizes.value_dim), np.float32),
        }

    def step(self, inputs: Arrays) -> NDArray[Any]:
        """Updates the states, where the layer has some, and returns ``logits``."""
        import numpy as np

        from qeff_framework.dialect import reference

        if self._layer.program.states:
            for name, table in (("past_key.0", "key_table"), ("past_value.0", "value_table")):
                new = heads(self._layer.constants[table], inputs["input_ids"], self._sizes.key_heads)
                arguments = (self.states[name], new, inputs["position_ids"])
                if "batch_index" in inputs:
                    self.states[name] = reference.kv_update_cb(*arguments, inputs["batch_index"])
                else:
                    self.states[name] = reference.kv_update(*arguments)
        # Padding may hold infinities: that their results are NaN is no news.
        with np.errstate(all="ignore"):
            return self._layer.expected(inputs, self.states)


def step_inputs(layer: Layer, *, padding: str = "large", text: int = 0) -> Iterator[Arrays]:
    """The inputs of `STEPS`, with cache rows in changing order where the layer batches continuously."""
    import numpy as np

    continuous = "full_batch_size" in layer.program.specializations[0].dims
    for number, positions in enumerate(STEPS):
        # Row r of the text stays in one row of the cache, but not in the same row of the step.
        more = {"batch_index": np.array([[(row + 1) % CACHE_ROWS] for row in range(ROWS)])} if continuous else {}
        inputs = feeds(positions, padding=padding, text=text, **more)
        if continuous and number % 2:
            inputs = {name: np.ascontiguousarray(array[::-1]) for name, array in inputs.items()}
        yield inputs


def valid_part(layer: Layer, inputs: Arrays, output: NDArray[Any]) -> NDArray[Any]:
    """The numbers of tokens that are no padding; all where the output has no axis of tokens."""
    import numpy as np

    if layer.token_axis is None:
        return output
    is_token = inputs["position_ids"] >= 0
    by_token = np.moveaxis(output, layer.token_axis, 1)
    found: NDArray[Any] = by_token[is_token]
    return found


def renamed(layer: Layer, name: str, **program: Any) -> Layer:
    """The layer under another name, with other fields of its program."""
    return replace(layer, program=replace(layer.program, name=name, **program))
