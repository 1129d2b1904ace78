"""Prompts as they come - text, ids, or what a tokenizer returns - brought to one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def normalize_inputs(inputs: object) -> list[list[int]]:
    """Token ids of each row without padding.

    `inputs` is what a tokenizer returns (``input_ids`` with or without ``attention_mask``; lists, NumPy arrays or tensors; one
    row or several), or the ids alone. With a mask, the places that it marks with 0 are dropped: padding on either side.
    Raises `InputError` for shapes that do not fit each other or ids that are not whole numbers.
    """
    if isinstance(inputs, Mapping):
        if "input_ids" not in inputs:
            raise InputError(f"the inputs hold {', '.join(map(str, inputs)) or 'nothing'}, but no input_ids")
        ids = integer_rows(inputs["input_ids"], "input_ids")
        mask = inputs.get("attention_mask")
    else:
        ids, mask = integer_rows(inputs, "input_ids"), None
    if mask is None:
        return ids
    rows = integer_rows(mask, "attention_mask")
    check_same_shape("attention_mask", rows, ids)
    return [[token for token, kept in zip(*pair, strict=True) if kept] for pair in zip(ids, rows, strict=True)]


def integer_rows(value: object, name: str) -> list[list[int]]:
    """A tensor, an array or lists ``[N, S]``, also of unequal lengths; one row may stand alone as ``[S]``."""
    content = _as_lists(value)
    if not isinstance(content, list):
        raise InputError(f"{name} must be rows of whole numbers, got {type(value).__name__}")
    rows = content if any(isinstance(row, list) for row in content) else [content] if content else []
    for index, row in enumerate(rows):
        if not isinstance(row, list) or not all(isinstance(item, int) for item in row):
            raise InputError(f"{name}, row {index}, must be a list of whole numbers")
    return [[int(item) for item in row] for row in rows]


def check_same_shape(name: str, rows: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> None:
    """Raises `InputError` unless `rows` has the lengths of `ids`."""
    lengths, wanted = [len(row) for row in rows], [len(row) for row in ids]
    if lengths != wanted:
        raise InputError(f"{name} has rows of {lengths} values, input_ids has rows of {wanted}; they must be alike")


def right_padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> NDArray[np.int64]:
    """The rows as one array ``[N, width]``."""
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def _as_lists(value: Any) -> object:
    """Tensors and arrays have `tolist`; so do the items of a list of tensors."""
    if hasattr(value, "tolist"):
        return _as_lists(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) for item in value]
    return value
