"""What a subcommand hands back for printing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """The result of a subcommand, once for programs and once for people."""

    #: Printed by ``--json``.
    document: Mapping[str, Any]
    #: Printed otherwise.
    text: str = ""
    #: Figures about the run, left out with ``--quiet``: after the text, or on stderr beside a JSON document.
    summary: str = ""
    #: Why the exit code is 1 although there is a result to show.
    failure: str = ""


def to_json(document: Mapping[str, Any]) -> str:
    """The one JSON document of a run; ASCII, so that it can be written to any terminal or pipe."""
    return json.dumps(document, indent=2, default=_plain, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
