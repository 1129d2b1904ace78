"""Option schemas: one frozen, keyword-only dataclass per backend, checked before any work starts.

A backend subclasses `CompileOptions` or `MicroscalingOptions` (what changes the program; part of the cache key) and
`RuntimeOptions` (where and how it is run; not part of any key). Each field is documented by ``metadata={"help": ...}``, see
`option`; `choices` and `minimum` are checked, anything beyond that belongs into ``__post_init__``, which raises `ValueError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qeff_framework.deprecation import deprecate, deprecated_property
from qeff_framework.errors import OptionError

T = TypeVar("T")


def check_switches(call: str, **given: object) -> None:
    """Raises `OptionError` unless every argument of a method is true, false or `None`: a text such as "false" would be true."""
    for name, value in given.items():
        if not isinstance(value, bool | None):
            raise OptionError(f"{call}: {name}={value!r} must be True or False")


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[object] | None = None,
    minimum: float | None = None,
    changes_program: bool = True,
) -> Any:
    """A documented dataclass field. `choices` and `minimum` are enforced by `parse_options`.

    A compile option with ``changes_program=False``, such as a time limit, is not part of cache keys.
    """
    metadata: dict[str, Any] = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "changes_program": changes_program,
    }
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _not_common(name: str) -> Any:
    """An option that only `MicroscalingOptions` has; backends that were written when all had it find it `False`."""
    return deprecated_property(
        deprecate(f"CompileOptions.{name}", instead=f"MicroscalingOptions.{name}", since="0.1", removal="0.3"),
        lambda options: False,
    )


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The options that users of accelerators know and every backend takes.

    A backend that cannot honour one of them leaves the matching capability off; asking for it is then an error.
    """

    num_devices: int = option(1, "accelerators that one program is spread over", minimum=1)
    num_cores: int = option(16, "compute cores used on each device; a simulator uses at most the host's", minimum=1)


for _name in ("mxfp6_matmul", "mxint8_kv_cache"):
    setattr(CompileOptions, _name, _not_common(_name))


@dataclass(frozen=True, kw_only=True)
class MicroscalingOptions(CompileOptions):
    """Base of the options of a backend whose compiler stores tensors in Microscaling (MX) formats.

    Every backend takes these options at `False`, which asks for nothing, so that a call can be used with several backends.
    """

    mxfp6_matmul: bool = option(False, "store constant MatMul weights as MXFP6")
    mxint8_kv_cache: bool = option(False, "store the KV cache as MXINT8")


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(CompileOptions):
    """Base of the options of a backend that can lower attention by `ReplicateKVHeads` and `BlockedAttention`.

    Programs without attention over a cache are the same with any values.
    """

    num_kv_blocks: int = option(
        1,
        "blocks of cache slots over which attention is computed one after the other, so that the scores of a long context need "
        "not fit into fast memory at once",
        minimum=1,
    )
    replicate_kv_heads: int = option(
        1,
        "how often each key and value head stands in the cache, so that heads divide over num_devices; the cache grows as much",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class LayerWindowOptions(CompileOptions):
    """Base of the options of a backend whose causal language models may be cut between their layers, see `layer_windows`.

    The core cuts the portable graph and asks the backend for each program; a backend has nothing to do but to take the option.
    """

    num_layers_per_program: int | None = option(
        None,
        "cut a language model into programs of so many layers each, which run one after the other in each step; by default one "
        "program has all layers",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how a program is run. Empty unless a backend adds fields."""


@dataclass(frozen=True, kw_only=True)
class OptionInfo:
    """One row of an options table, for ``--help``, ``--json`` and the docs."""

    name: str
    type: str
    default: object
    help: str
    choices: tuple[object, ...] = ()


#: Names that are less alike than this are not suggested: `enable_debug` is no help for `enable_chunking`.
CLOSE = 0.75


def misplaced_options(schema: type, place: str) -> dict[str, str]:
    """What to say of an option of `schema` that was given to another stage.

    Args:
        schema: the options of the stage that the option belongs to.
        place: ``"is an option of the runtime; pass it to ..."``.
    """
    return {field.name: place for field in dataclasses.fields(schema)}


#: Where the options of a stage belong.
OF_THE_RUNTIME = "is an option of the runtime: pass it to load() or load_compiled(), on the command line with -R"
OF_THE_COMPILATION = "is an option of the compilation: pass it to compile(), on the command line with -O"


def describe_options(schema: type) -> list[OptionInfo]:
    """The fields of an options class, in declaration order."""
    hints = typing.get_type_hints(schema)
    return [
        OptionInfo(
            name=field.name,
            type=_type_name(hints[field.name]),
            default=default_of(field),
            help=str(field.metadata.get("help", "")),
            choices=tuple(field.metadata.get("choices") or ()),
        )
        for field in dataclasses.fields(schema)
    ]


def default_of(field: dataclasses.Field[Any]) -> object:
    """The default value of a dataclass field, or `None` when it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


def parse_options(
    schema: type[T],
    values: Mapping[str, object],
    *,
    owner: str,
    also_known: Iterable[str] = (),
    elsewhere: Mapping[str, Sequence[str]] | None = None,
    misplaced: Mapping[str, str] | None = None,
    from_text: bool = False,
) -> T:
    """Builds `schema` from `values`, or raises one `OptionError` that lists every problem.

    `owner` names the schema in messages (``"backend 'ort_sim'"``); `also_known` are names that the caller takes
    itself and that serve as suggestions; `elsewhere` tells for an option name which other backends have it, `misplaced`
    where an option of another stage belongs. With `from_text` the values are strings from a command line and are read
    according to the field's type.
    """
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(schema)
    problems: list[str] = []
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields and name in _ASKS_FOR_NOTHING_AT_FALSE and issubclass(schema, CompileOptions):
            problems += _refused_format(name, value, owner, from_text=from_text)
            continue
        if name not in fields:
            place = (misplaced or {}).get(name)
            unknown = _unknown(name, [*fields, *also_known], owner, elsewhere or {})
            problems.append(f"'{name}' {place}" if place else unknown)
            continue
        try:
            typed = _from_text(value, hints[name]) if from_text and isinstance(value, str) else value
            accepted[name] = _checked(typed, hints[name], fields[name])
        except ValueError as error:
            problems.append(f"option '{name}' {error}")
    problems += [f"option '{name}' has no default and must be given" for name in _missing(fields.values(), values)]
    if not problems:
        try:
            return schema(**accepted)
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    raise OptionError(f"{owner}: " + "; ".join(problems))


def _missing(fields: Iterable[dataclasses.Field[Any]], values: Mapping[str, object]) -> list[str]:
    return [
        field.name
        for field in fields
        if field.init
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]


#: Compile options that a backend without them takes at `False`.
_ASKS_FOR_NOTHING_AT_FALSE = {f.name for f in dataclasses.fields(MicroscalingOptions)} - {
    f.name for f in dataclasses.fields(CompileOptions)
}


def _refused_format(name: str, value: object, owner: str, *, from_text: bool) -> list[str]:
    if from_text and isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        return [f"option '{name}' must be bool, got {type(value).__name__} {value!r}"]
    return [f"{owner} does not support {name}=True; leave it out or choose another one"] if value else []


def _unknown(name: str, known: Sequence[str], owner: str, elsewhere: Mapping[str, Sequence[str]]) -> str:
    normalized = name.replace("-", "_").lower()
    near = difflib.get_close_matches(normalized, known, n=1, cutoff=CLOSE)
    message = f"unknown option '{name}'"
    if near:
        message += f", did you mean '{near[0]}'?"
    others = elsewhere.get(normalized, ())
    if others:
        message += f" ('{normalized}' is an option of backend {', '.join(repr(other) for other in others)})"
    if not near and not others:
        message += f"; {owner} takes {', '.join(sorted(known))}"
    return message


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " | ".join(_type_name(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    return getattr(hint, "__name__", str(hint))


def _checked(value: object, hint: Any, field: dataclasses.Field[Any]) -> object:
    if isinstance(value, str) and not _matches(value, hint) and _matches(Path(value), hint):
        value = Path(value)  # a path in Python may be a text, as everywhere
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined] # a number of NumPy
    if not _matches(value, hint):
        raise ValueError(f"must be {_type_name(hint)}, got {type(value).__name__} {value!r}")
    choices = field.metadata.get("choices")
    is_unset = value is None and default_of(field) is None
    if choices and value not in choices and not is_unset:
        raise ValueError(f"must be one of {', '.join(map(repr, choices))}, got {value!r}")
    minimum = field.metadata.get("minimum")
    if minimum is not None and isinstance(value, (int, float)) and value < minimum:
        raise ValueError(f"must be at least {minimum}, got {value!r}")
    return value


def _matches(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return any(_matches(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (int, float):
        # bool is an int to Python; as an option value it is a mistake.
        return not isinstance(value, bool) and isinstance(value, (int, float) if hint is float else int)
    if hint is None:
        return value is None
    if origin is tuple and isinstance(value, tuple):
        items = _items(hint, len(value))
        return len(items) == len(value) and all(map(_matches, value, items))
    return isinstance(value, origin or hint)


def _from_text(text: str, hint: Any) -> object:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if text.lower() == "none" and type(None) in typing.get_args(hint):
            return None
        return _first_that_reads(text, [part for part in typing.get_args(hint) if part is not type(None)])
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"must be true or false, got {text!r}")
        return text.lower() in ("true", "1")
    if hint is Path:
        return Path(text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"must be {hint.__name__}, got {text!r}") from None
    if typing.get_origin(hint) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        items = _items(hint, len(parts))
        if len(items) != len(parts):
            raise ValueError(f"must be {_type_name(hint)}, got {len(parts)} values: {text!r}")
        return tuple(map(_from_text, parts, items))
    return text


def _items(hint: Any, length: int) -> tuple[Any, ...]:
    """The types of the members of a tuple of this type: as many as `length`, or as many as the type says."""
    items = typing.get_args(hint)
    return items[:1] * length if items[-1:] == (Ellipsis,) else items


def _first_that_reads(text: str, hints: Sequence[Any]) -> object:
    """Tries the narrower types first, so that ``int | str`` reads ``"16"`` as a number."""
    failure: ValueError | None = None
    for hint in sorted(hints, key=lambda part: part is str):
        try:
            return _from_text(text, hint)
        except ValueError as error:
            failure = error
    raise failure or ValueError(f"cannot be read from {text!r}")
