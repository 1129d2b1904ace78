"""Slice specifications for handing state over between programs (row R15)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Start = str | int


@dataclass(frozen=True, kw_only=True)
class BufferSpec:
    """Where arrays of the bindings that match `name` begin: a number or a symbol for each dim."""

    name: re.Pattern[str]
    element_size: int
    starts: tuple[Start, ...]


@dataclass(frozen=True, kw_only=True)
class SliceHandle:
    """A parsed specification."""

    specs: tuple[BufferSpec, ...]


def parse_slicing_spec(text: str) -> SliceHandle:
    """Read `{"BufferSpecs": [{"Name": regex, "ElemSize": bytes, "DimSpecs": [{"start": ...}, ...]}, ...]}`.

    Raises:
        ValueError: another form.
    """
    try:
        return SliceHandle(
            specs=tuple(
                BufferSpec(
                    name=re.compile(spec["Name"]),
                    element_size=spec["ElemSize"],
                    starts=tuple(dim["start"] for dim in spec["DimSpecs"]),
                )
                for spec in json.loads(text)["BufferSpecs"]
            )
        )
    except (KeyError, TypeError, re.error) as error:
        raise ValueError(f"Malformed slicing specification: {error!r}") from error


def slice_starts(handle: SliceHandle, name: str, array: np.ndarray, symbols: Mapping[str, int]) -> list[int] | None:
    """Start of `array` in each dim, or None when no specification fits it or a symbol has no value."""
    for spec in handle.specs:
        if not spec.name.fullmatch(name) or spec.element_size != array.itemsize or len(spec.starts) != array.ndim:
            continue
        starts = [symbols.get(start) if isinstance(start, str) else start for start in spec.starts]
        known = [start for start in starts if start is not None]
        return known if len(known) == len(starts) else None
    return None
