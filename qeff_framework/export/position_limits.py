"""How many tokens the tables of a graph have rows for: a learned embedding has one for each position and none beyond.

Nothing else bounds a model: rotary positions are computed, and go on where ``max_position_embeddings`` ends. So the limit is
read off the graph: what a lookup takes its indices from is run on more and more tokens, until an index lies outside the table,
or until there are fewer indices than tokens, where they are cut out of a table themselves.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.export.interface import CTX, ENCODER_SEQ, SEQ
from qeff_framework.lowering.computation import Computation

#: Rows of a table that has one for each distance of two tokens; to try a longer one would take gigabytes.
_MAX_PAIRED = 4096
#: An axis whose size is symbolic is no table's.
_UNBOUNDED = int(np.iinfo(np.int64).max)


def position_limits(model: ir.Model, *, has_cache: bool) -> dict[str, int]:
    """The most that a dimension may be, by its name in specializations; empty where no table bounds one.

    ``ctx_len`` of a decoder, ``encoder_seq_len`` of the encoder beside it, ``seq_len`` of a graph without a cache.
    """
    streams = {
        CTX if has_cache else SEQ: (
            "input_ids",
            "position_ids",
            "attention_mask",
            "token_type_ids",
        ),
        ENCODER_SEQ: ("encoder_input_ids", "encoder_position_ids", "encoder_lengths"),
    }
    limits: dict[str, int] = {}
    for dim, names in streams.items():
        tokens = {value for value in model.graph.inputs if value.name in names}
        lookups = {lookup for node in model.graph if (lookup := _lookup(node, tokens)) is not None}
        found = [limit for lookup in lookups if (limit := _limit(lookup)) is not None]
        if found:
            limits[dim] = min(found)
    return limits


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    """What nodes that look up the same rows of equally large tables have in common."""

    #: Of the indices, from token ids, positions and the like.
    computation: Computation
    #: Rows of the table; several for indices of several axes, which are their last axis then.
    rows: tuple[int, ...]


def _lookup(node: ir.Node, tokens: set[ir.Value]) -> _Lookup | None:
    """The lookup that `node` is, if its indices come from `tokens` and constants and from nothing else."""
    rows = _table_rows(node)
    indices = node.inputs[1] if rows else None
    if indices is None or (indices.is_graph_input() and not _is_positions(indices)):
        return None
    computation = Computation.of(indices, tokens)
    return None if computation is None else _Lookup(computation=computation, rows=rows)


def _table_rows(node: ir.Node) -> tuple[int, ...]:
    """The sizes that the indices of a lookup must stay below; empty for other nodes, and where none is known."""
    if node.domain or node.op_type not in ("Gather", "GatherElements", "GatherND") or node.inputs[0] is None:
        return ()
    shape = node.inputs[0].shape
    if shape is None:
        return ()
    sizes = [dim if isinstance(dim, int) else _UNBOUNDED for dim in shape]
    if node.op_type == "GatherND":
        indices = node.inputs[1]
        width = None if indices is None or indices.shape is None else indices.shape[-1]
        first = node.attributes.get_int("batch_dims", 0)
        rows = sizes[first : first + width] if isinstance(width, int) else []
    else:
        rows = [sizes[node.attributes.get_int("axis", 0)]]
    return tuple(rows) if any(size != _UNBOUNDED for size in rows) else ()


def _is_positions(value: ir.Value) -> bool:
    return str(value.name).endswith("position_ids")


def _limit(lookup: _Lookup) -> int | None:
    """The most tokens that the lookup has rows for; `None` when their number plays no part."""
    compute = _indices_of(lookup.computation)
    one, three = compute(1), compute(3)
    if one is None:
        return None
    # An index of, say, the last token is one index however many tokens there are.
    per_token = three is None or three.size == 3 * one.size

    def fails(length: int) -> bool:
        indices = compute(length)
        if indices is None or (per_token and indices.size != length * one.size):
            return True
        return bool((indices >= np.array(lookup.rows)).any())

    # Behind the last row, whatever is added to the positions.
    beyond = max(size for size in lookup.rows if size != _UNBOUNDED) + 1
    pairs = three is not None and three.size > 3 * one.size
    if (pairs and beyond > _MAX_PAIRED) or fails(1) or not fails(beyond):
        return None
    return bisect.bisect_left(range(beyond), x=True, lo=1, key=fails) - 1


def _indices_of(computation: Computation) -> Callable[[int], NDArray[np.int64] | None]:
    """The indices for a text of so many tokens; `None` when they cannot be computed."""

    def compute(length: int) -> NDArray[np.int64] | None:
        # Which token is padding is not known here; of two tokens one is none.
        rows = [evaluate(length, token) for token in (0, 1)]
        return None if rows[0] is None or rows[1] is None else np.maximum(rows[0], rows[1])

    def evaluate(length: int, token: int) -> NDArray[np.int64] | None:
        feeds = {str(value.name): _example(value, length, token) for value in computation.inputs}
        try:
            with np.errstate(all="ignore"):
                return computation(feeds)
        except Exception:  # noqa: BLE001  (whatever an op says to sizes that do not fit)
            return None

    return compute


def _example(value: ir.Value, length: int, token: int) -> NDArray[np.int64]:
    if _is_positions(value):
        return np.arange(length, dtype=np.int64)[None]
    if value.name == "encoder_lengths":
        return np.full((1, 1), length, dtype=np.int64)
    return np.full((1, length), 1 if value.name == "attention_mask" else token, dtype=np.int64)
