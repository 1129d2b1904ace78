"""The specialization JSON file, flat and named (row C10), and the symbols of `-onnx-define-symbol`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..profiles import Profile
from .errors import compile_failed, json_exception

_KEY = "specializations"
_NAMED_KEYS = {"name", "symbols"}
_JSON_TYPES = {dict: "object", list: "array", bool: "boolean", int: "number", float: "number", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class Specialization:
    """One binding of symbols. `name` is empty in the flat form."""

    name: str
    symbols: Mapping[str, int]


def read_specializations(
    path: Path | None, symbols: Sequence[tuple[str, int]], profile: Profile
) -> tuple[Specialization, ...]:
    """All specializations of a compilation; a single one without symbols when nothing was given.

    Raises:
        CompileError: exit 255 for what the JSON reader of the real tool aborts on, exit 1 for the rest.
    """
    defined = dict(symbols)
    if path is None:
        return (Specialization(name="", symbols=defined),)
    entries = _entries(path)
    named = [isinstance(entry, dict) and set(entry) == _NAMED_KEYS for entry in entries]
    looks_named = [isinstance(entry, dict) and "symbols" in entry for entry in entries]
    if any(looks_named) and not profile.reads_named_specializations:
        raise json_exception(302, "type_error", "type must be string, but is object")
    if any(looks_named) and not all(named):
        raise compile_failed("Specializations must all be flat, or all have exactly the keys name and symbols")
    if all(named):
        names = [_string(entry["name"]) for entry in entries]
        if len(set(names)) != len(names) or not all(names):
            raise compile_failed(f"Specialization names must be unique and not empty, got {names}")
        bindings = [entry["symbols"] for entry in entries]
    else:
        names = [""] * len(entries)
        bindings = entries
    result = tuple(
        Specialization(name=name, symbols=_symbols(binding)) for name, binding in zip(names, bindings, strict=True)
    )
    return tuple(Specialization(name=entry.name, symbols=_merged(entry.symbols, defined)) for entry in result)


def _entries(path: Path) -> list[Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise json_exception(101, "parse_error", f"parse error in {path.name}: {error}") from error
    if not isinstance(document, dict) or set(document) != {_KEY}:
        raise compile_failed(f"{path.name} must be an object with the single key '{_KEY}'")
    entries = document[_KEY]
    if not isinstance(entries, list) or not entries:
        raise compile_failed(f"'{_KEY}' in {path.name} must be a list with at least one entry")
    return entries


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise compile_failed(f"Duplicate key in specialization file: {keys}")
    return dict(pairs)


def _symbols(binding: Any) -> dict[str, int]:
    if not isinstance(binding, dict):
        raise json_exception(302, "type_error", f"type must be object, but is {_type_name(binding)}")
    result = {}
    for symbol, value in binding.items():
        text = _string(value)
        if not (text.isascii() and text.isdigit()):
            raise compile_failed(f"Value '{text}' of symbol '{symbol}' is not a decimal number")
        result[symbol] = int(text)
    return result


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise json_exception(302, "type_error", f"type must be string, but is {_type_name(value)}")
    return value


def _type_name(value: object) -> str:
    return _JSON_TYPES.get(type(value), "string")


def _merged(symbols: Mapping[str, int], defined: Mapping[str, int]) -> dict[str, int]:
    both = sorted(set(symbols) & set(defined))
    if both:
        raise compile_failed(f"Symbols bound by -onnx-define-symbol and by the specialization file: {both}")
    return {**defined, **symbols}
