"""Calls with and without the prompt in one batch, taken apart into two calls of half the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from qeff_framework.diffusion.calls import Call, tensor_specs


def rows_of_halves(call: Call) -> list[int]:
    """The numbers of rows that half of the call may have."""
    found = {spec["shape"][0] // 2 for _, spec in tensor_specs(call.arguments) if spec["shape"]}
    return sorted((rows for rows in found if rows), reverse=True)


def half_of(call: Call, rows: int) -> Call | None:
    """The call for `rows` rows; `None` for one that is not of twice as many. Tensors of other sizes belong to both halves."""
    if not any(_is_double(spec, rows) for _, spec in tensor_specs(call.arguments)):
        return None
    return replace(call, arguments=_halved(call.arguments, rows))


def _is_double(spec: Mapping[str, Any], rows: int) -> bool:
    return bool(spec["shape"]) and spec["shape"][0] == 2 * rows


def _halved(description: Any, rows: int) -> Any:
    if isinstance(description, Mapping):
        if set(description) == {"shape", "dtype"}:
            return (
                {**description, "shape": [rows, *description["shape"][1:]]}
                if _is_double(description, rows)
                else description
            )
        return {name: _halved(item, rows) for name, item in description.items()}
    return [_halved(item, rows) for item in description] if isinstance(description, list) else description


def halves(tensors: Sequence[torch.Tensor], rows: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors of the first and of the second call."""
    pairs = [
        (each[:rows], each[rows:]) if each.dim() and each.shape[0] == 2 * rows else (each, each) for each in tensors
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
