"""Turns argv into typed values and refuses everything that the table does not allow (rows C1 to C5, C7, C8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..profiles import Profile
from .errors import CompileError, invalid_option, wrong_value
from .options import Kind, Option, options_of

_Number = TypeVar("_Number", int, float)
Value = bool | int | float | str | Path | tuple[str, ...]

_INTEGER = re.compile(r"-?\d+\Z")
_NUMBER = re.compile(r"-?\d+(\.\d+)?\Z")
_PYTHON_LITERALS = re.compile(r"None\Z|True\Z|False\Z|[\[({]")
_DEFAULT_CORES = 1
_MAX_PMU_EVENTS = 8


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The values given on the command line, by canonical option name."""

    values: dict[str, Value]
    symbols: tuple[tuple[str, int], ...]
    not_modelled: tuple[str, ...] = field(default=())

    def flag(self, name: str) -> bool:
        """A boolean option; false when not given."""
        return self.values.get(name) is True

    def path(self, name: str) -> Path | None:
        """A path option; None when not given."""
        value = self.values.get(name)
        return value if isinstance(value, Path) else None

    def required_path(self, name: str) -> Path:
        """A path option whose presence was checked by `parse_arguments`."""
        value = self.values[name]
        if not isinstance(value, Path):
            raise TypeError(f"{name} is not a path option")
        return value

    def text(self, name: str, default: str) -> str:
        """A text option."""
        value = self.values.get(name, default)
        return str(value)

    @property
    def cores(self) -> int:
        value = self.values.get("aic-num-cores", _DEFAULT_CORES)
        return value if isinstance(value, int) else _DEFAULT_CORES


def parse_arguments(argv: Sequence[str], profile: Profile) -> Arguments:
    """Check and convert the arguments after the program name.

    Raises:
        CompileError: the first thing that is wrong, with exit code 1.
    """
    table = options_of(profile)
    values: dict[str, Value] = {}
    symbols: list[tuple[str, int]] = []
    not_modelled: list[str] = []
    for argument in argv:
        option, text = _split(argument, table)
        value = _convert(option, text)
        name = option.canonical_name
        if option.repeatable:
            if name == "onnx-define-symbol":
                symbols.append(_symbol(str(value)))
        elif name in values:
            raise CompileError(f"Option -{option.name} appears twice; it takes a single value.")
        else:
            values[name] = value
        if not option.modelled:
            not_modelled.append(f"-{name}")
    arguments = Arguments(values=values, symbols=tuple(symbols), not_modelled=tuple(not_modelled))
    _check_required(arguments, profile)
    _check_combinations(arguments)
    return arguments


def _split(argument: str, table: dict[str, Option]) -> tuple[Option, str | None]:
    name, separator, text = argument.partition("=")
    # A second dash, an underscore or a value in an argument of its own all end here: none of them is in the table.
    if not name.startswith("-") or name[1:] not in table:
        raise invalid_option(argument)
    return table[name[1:]], text if separator else None


def _convert(option: Option, text: str | None) -> Value:
    name = f"-{option.name}"
    if option.kind is Kind.BOOL:
        if text not in (None, "true", "false"):
            raise wrong_value(name, str(text), "no value, 'true' or 'false'")
        return text != "false"
    if text is None or not text:
        raise CompileError(f"Option {name} needs a value: {name}=<{option.kind.value}>.")
    if _PYTHON_LITERALS.match(text) and text not in option.choices:
        raise wrong_value(name, text, option.kind.value)
    if option.choices and text not in option.choices:
        raise wrong_value(name, text, f"one of {', '.join(option.choices)}")
    return _convert_text(option, name, text)


def _convert_text(option: Option, name: str, text: str) -> Value:
    match option.kind:
        case Kind.INT:
            if not _INTEGER.match(text):
                raise wrong_value(name, text, option.kind.value)
            return _in_range(option, int(text), text)
        case Kind.FLOAT:
            if not _NUMBER.match(text):
                raise wrong_value(name, text, option.kind.value)
            return _in_range(option, float(text), text)
        case Kind.LIST | Kind.INT_LIST:
            items = tuple(text.split(","))
            if not all(items) or (option.kind is Kind.INT_LIST and not all(_INTEGER.match(item) for item in items)):
                raise wrong_value(name, text, option.kind.value)
            return items
        case Kind.INPUT_FILE:
            if not Path(text).is_file():
                raise CompileError(f"Cannot open file '{text}' given with {name}.")
            return Path(text)
        case Kind.OUTPUT_PATH:
            return Path(text)
        case _:
            return text


def _in_range(option: Option, number: _Number, text: str) -> _Number:
    too_small = option.minimum is not None and number < option.minimum
    too_large = option.maximum is not None and number > option.maximum
    if too_small or too_large:
        bounds = f"at least {option.minimum}" if option.maximum is None else (f"{option.minimum} to {option.maximum}")
        raise wrong_value(f"-{option.name}", text, bounds)
    return number


def _symbol(text: str) -> tuple[str, int]:
    name, separator, value = text.partition(",")
    if not name or not separator or not value.isdecimal():
        raise wrong_value("-onnx-define-symbol", text, "<symbol>,<decimal integer>")
    return name, int(value)


def _check_required(arguments: Arguments, profile: Profile) -> None:
    required = ["m", "aic-binary-dir"]
    missing = [f"-{name}" for name in required if name not in arguments.values]
    # The simulator target is not part of the stand-in.
    missing += [] if arguments.flag("aic-hw") else ["-aic-hw"]
    if profile.needs_compile_only and not arguments.flag("compile-only"):
        # Without it the old tool goes on to execute the network.
        missing.append("-compile-only")
    if missing:
        raise CompileError(f"Missing required option(s): {', '.join(missing)}.")


def _check_combinations(arguments: Arguments) -> None:
    for name in ("mos", "ols"):
        value = arguments.values.get(name)
        if isinstance(value, int) and (value & (value - 1) or value > arguments.cores):
            raise wrong_value(f"-{name}", str(value), f"a power of two up to {arguments.cores} cores")
    if arguments.flag("aic-preproc") and "network-specialization-config" in arguments.values:
        raise CompileError("Network specialization is not supported together with -aic-preproc.")
    events = arguments.values.get("aic-pmu-events", ())
    if isinstance(events, tuple) and len(events) > _MAX_PMU_EVENTS:
        raise wrong_value("-aic-pmu-events", ",".join(events), f"at most {_MAX_PMU_EVENTS} events")
    names = [name for name, _ in arguments.symbols]
    if len(set(names)) != len(names):
        raise CompileError("Option -onnx-define-symbol binds a symbol twice.")
    clusters = arguments.values.get("sdp-cluster-sizes")
    if isinstance(clusters, tuple) and sum(map(int, clusters)) != arguments.cores:
        raise wrong_value("-sdp-cluster-sizes", ",".join(clusters), f"a sum of {arguments.cores} cores")
