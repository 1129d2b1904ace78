"""Options that were typed as text, read by the types of the options classes that know them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from qeff_framework.errors import OptionError
from qeff_framework.options import MicroscalingOptions, parse_options


def typed_options(texts: Mapping[str, str], schemas: Sequence[type]) -> dict[str, Any]:
    """Values for `texts`; the first schema with a field of that name decides.

    A name that no schema has, and a text that cannot be read, stay text: the framework then reports them together with every
    other problem, instead of one after the other.
    """
    hints = {
        field.name: typing.get_type_hints(schema)[field.name]
        for schema in reversed([*schemas, MicroscalingOptions])  # which every backend takes, at least at false
        for field in dataclasses.fields(schema)
    }
    return {name: _read(name, text, hints[name]) if name in hints else text for name, text in texts.items()}


def _read(name: str, text: str, hint: Any) -> object:
    # A class with this one field and without checks: those of the real class concern all of its values together.
    single = dataclasses.make_dataclass("single", [(name, hint)], frozen=True, kw_only=True)
    try:
        return getattr(parse_options(single, {name: text}, owner=name, from_text=True), name)
    except OptionError:
        return text
