"""Python values as plain JSON values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeAlias

from qeff_framework.errors import ArtifactError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

#: Turns a value that JSON has no word for into one that it has, or raises. Gets the value and its place, such as
#: ``options.seed``.
Fallback: TypeAlias = Callable[[object, str], Json]


def to_json_value(value: object, fallback: Fallback, place: str = "") -> Json:
    """`value` in dicts, lists and scalars only.

    Dataclasses become objects, enum members their values, tuples and sets lists (sets in sorted order), integer keys
    text, as `json` writes them. Infinities become ``{"__float__": "Infinity"}``, the form that Transformers gives them
    in its ``config.json``: configurations of state-space models contain them. NaN raises `ArtifactError`, because it
    equals nothing, not even itself. Everything else is left to `fallback`.
    """
    match value:
        case Enum():
            return to_json_value(value.value, fallback, place)
        case None | bool() | int() | str():
            return value
        case float():
            return _number(value, place)
        case Mapping():
            return _object(value, fallback, place)
        case list() | tuple():
            return [to_json_value(item, fallback, f"{place}[{index}]") for index, item in enumerate(value)]
        case set() | frozenset():
            items = [to_json_value(item, fallback, f"{place}{{}}") for item in value]
            return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields: dict[object, object] = {
                field.name: getattr(value, field.name) for field in dataclasses.fields(value)
            }
            return _object(fields, fallback, place)
        case _:
            return fallback(value, place)


def _number(value: float, place: str) -> Json:
    if math.isnan(value):
        raise ArtifactError(
            f"{place or 'the value'} is NaN, which cannot be compared or written as JSON: give a number or None"
        )
    if math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    return value


def _object(value: Mapping[object, object], fallback: Fallback, place: str) -> dict[str, Json]:
    result: dict[str, Json] = {}
    for key, item in value.items():
        name = _key(key, place)
        if name in result:
            raise ArtifactError(f"{place or 'the value'} has two keys that are both written as '{name}'")
        result[name] = to_json_value(item, fallback, f"{place}.{name}" if place else name)
    return result


def _key(key: object, place: str) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise ArtifactError(f"{place or 'the value'} has the key {key!r}: keys must be text or integers")
