"""The public surface as text: every name with its signature, every command with its options.

``python -m tests.public_surface`` writes ``tests/public_surface.txt``. Do it when a change of the surface is meant, and announce the
change in ``changelog.d``: docs/stability.md says what may change when.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_suffix(".txt")
#: Modules whose ``__all__`` is public.
MODULES = (
    "qeff_framework",
    "qeff_framework.plugin_api",
    "qeff_framework.lowering",
    "qeff_framework.scale",
    "qeff_framework.serving",
    "qeff_framework.sessions",
    "qeff_framework.toolchains",
    "qeff_framework.testing",
)
HOOKS = "qeff_framework.hookspecs:BackendHooks"


def surface() -> str:
    lines: list[str] = []
    for name in MODULES:
        module = importlib.import_module(name)
        lines += [
            f"[{name}]",
            *(line for each in sorted(module.__all__) for line in _described(each, getattr(module, each))),
            "",
        ]
    module_name, _, attribute = HOOKS.partition(":")
    hooks = getattr(importlib.import_module(module_name), attribute)
    lines += [f"[{module_name}]", *_described(attribute, hooks), "", "[the qeff command]", *_commands()]
    return "\n".join(lines) + "\n"


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"class {name}({', '.join(base.__name__ for base in value.__bases__ if base is not object)})"
        yield from (f"    {line}" for line in _members(value))
    elif inspect.isroutine(value):
        yield f"{name}{_signature(value)}"
    elif isinstance(value, (str, int, float, tuple, frozenset)):
        yield f"{name} = {sorted(value) if isinstance(value, frozenset) else value!r}"
    else:
        yield f"{name}: {type(value).__name__}"


def _members(cls: type) -> Iterator[str]:
    """What is defined for users of the class: not what it inherits from other libraries."""
    if issubclass(cls, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in cls)
        return
    fields = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    yield from (
        f"{field.name}: {_annotation(field.type)}{_default(field)}"
        for field in fields.values()
        if _is_public(field.name)
    )
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if base.__module__.startswith("qeff_framework")]):
        for name, value in vars(base).items():
            if name in fields or not (_is_public(name) or (name == "__init__" and not fields)):
                continue
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if inspect.isfunction(function):
                kind = f"{type(value).__name__} " if function is not value else ""
                found[name] = f"{kind}{name}{_signature(function)}"
            elif isinstance(value, property):
                found[name] = f"property {name}: {_annotation(inspect.signature(value.fget).return_annotation)}"  # type: ignore[arg-type]
        for name, annotation in inspect.get_annotations(base).items():
            if name not in fields and _is_public(name):
                found.setdefault(name, f"{name}: {_annotation(annotation)}")
    yield from (found[name] for name in sorted(found))


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _signature(function: Callable[..., Any]) -> str:
    """Like `inspect.signature`, the same for every Python: annotations as written, defaults without addresses."""
    signature = inspect.signature(function)
    parts: list[str] = []
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts and parameter.VAR_POSITIONAL not in kinds:
            parts.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        note = "" if parameter.annotation is parameter.empty else f": {_annotation(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {_value(parameter.default)}"
        parts.append(f"{stars}{parameter.name}{note}{default}")
    returned = signature.return_annotation
    return f"({', '.join(parts)})" + ("" if returned is signature.empty else f" -> {_annotation(returned)}")


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {_value(field.default)}"
    return " = ..." if field.default_factory is not dataclasses.MISSING else ""


def _value(value: Any) -> str:
    plain = isinstance(value, (str, int, float, bytes, type(None), enum.Enum))
    return repr(value) if plain or (isinstance(value, (tuple, frozenset)) and not value) else "..."


def _commands() -> Iterator[str]:
    from qeff_framework.cli.app import build_parser

    def described(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
        words = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            if not isinstance(action, argparse._HelpAction):
                told = "/".join(action.option_strings) or str(action.metavar or action.dest)
                choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
                words.append(told + choices)
        yield f"{name}: {' '.join(words)}"
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command, inner in action.choices.items():
                    yield from described(typing.cast("argparse.ArgumentParser", inner), f"{name} {command}")

    yield from described(build_parser(), "qeff")


if __name__ == "__main__":
    STORED.write_text(surface(), encoding="utf-8")
