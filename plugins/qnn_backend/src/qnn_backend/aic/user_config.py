"""The user's ``qnn_config.json``: further arguments of both tools and options of the back end.

Arguments are read token by token. Looking for the text of an option would let ``--config=x`` pass, and refuse ``--config_x``.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qnn_backend.aic.backend_options import problems_of
from qnn_backend.constants import QnnConstants

_TYPE_NAMES = {str: "a text", bool: "a boolean", dict: "an object"}


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """What the file asks for."""

    converter_arguments: tuple[str, ...] = ()
    generator_arguments: tuple[str, ...] = ()
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    skip_converter: bool = False


def read_user_config(path: Path | None) -> UserConfig:
    """Reads and checks the file; without one, nothing is asked for.

    Raises:
        ValueError: lists everything that is wrong with it.
    """
    if path is None:
        return UserConfig()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"qnn_config: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"qnn_config: {path} is not a JSON object")  # noqa: TRY004 -- a wrong option value
    problems = [*_unknown_keys(content), *_wrong_types(content)]
    if not problems:
        problems = _contradictions(content)
    if problems:
        raise ValueError("; ".join(f"qnn_config: {problem}" for problem in problems))
    return UserConfig(
        converter_arguments=tuple(shlex.split(content.get(QnnConstants.CONVERTER_ARGS_EXTENSION_STR, ""))),
        generator_arguments=tuple(shlex.split(content.get(QnnConstants.CONTEXT_BIN_ARGS_EXTENSION_STR, ""))),
        backend_options=content.get(QnnConstants.QNN_COMPILATION_BACKEND_STR, {}),
        skip_converter=content.get(QnnConstants.SKIP_QNN_CONVERTER_STEP_STR, False),
    )


_KEYS: Mapping[str, type[object]] = {
    QnnConstants.CONVERTER_ARGS_EXTENSION_STR: str,
    QnnConstants.CONTEXT_BIN_ARGS_EXTENSION_STR: str,
    QnnConstants.QNN_COMPILATION_BACKEND_STR: dict,
    QnnConstants.SKIP_QNN_CONVERTER_STEP_STR: bool,
}


def _unknown_keys(content: Mapping[str, Any]) -> list[str]:
    found = []
    for key in content:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f", did you mean '{near[0]}'?" if near else f"; there are {', '.join(_KEYS)}"
            found.append(f"unknown key '{key}'{hint}")
    return found


def _wrong_types(content: Mapping[str, Any]) -> list[str]:
    return [
        f"'{key}' must be {_TYPE_NAMES[kind]}, got {content[key]!r}"
        for key, kind in _KEYS.items()
        if key in content and not isinstance(content[key], kind)
    ]


def _contradictions(content: Mapping[str, Any]) -> list[str]:
    return [
        *_argument_problems(
            QnnConstants.CONVERTER_ARGS_EXTENSION_STR,
            content.get(QnnConstants.CONVERTER_ARGS_EXTENSION_STR, ""),
            # Short forms of the first two and of the last one.
            {**dict.fromkeys(QnnConstants.IMMUTABLE_CONVERTER_ARGS, ""), "-i": "", "-o": "", "-oss": ""},
        ),
        *_argument_problems(
            QnnConstants.CONTEXT_BIN_ARGS_EXTENSION_STR,
            content.get(QnnConstants.CONTEXT_BIN_ARGS_EXTENSION_STR, ""),
            {
                **dict.fromkeys(QnnConstants.IMMUTABLE_CONTEXT_BIN_GEN_ARGS, ""),
                "--data_format_config": ", use the option 'mxint8_kv_cache'",
            },
        ),
        *problems_of(content.get(QnnConstants.QNN_COMPILATION_BACKEND_STR, {})),
    ]


def _argument_problems(key: str, text: str, forbidden: Mapping[str, str]) -> list[str]:
    try:
        tokens = shlex.split(text)
    except ValueError as error:
        return [f"'{key}' cannot be split into arguments: {error}"]
    if tokens and not tokens[0].startswith("-"):
        return [f"'{key}' must start with an option, got '{tokens[0]}'"]
    found, seen = [], set[str]()
    for token in tokens:
        name = token.partition("=")[0]
        if name == "--" or not name.startswith("-") or _is_number(name):
            continue
        owner = _forbidden(name, forbidden)
        if owner is not None:
            meant = f"'{name}'" if owner == name else f"'{name}', which the tool may take for '{owner}',"
            found.append(f"{meant} in '{key}' is set by the backend{forbidden[owner]}")
        elif name in seen:
            found.append(f"'{name}' is twice in '{key}'")
        seen.add(name)
    return found


def _is_number(text: str) -> bool:
    """A negative number in digits: ``-inf`` reads as the option ``-i``."""
    return re.fullmatch(r"-(\d+\.?\d*|\.\d+)", text) is not None


def _forbidden(name: str, forbidden: Mapping[str, str]) -> str | None:
    """The forbidden option that `name` is, or may be an abbreviation of: both tools take a clear beginning of an option."""
    if name in forbidden:
        return name
    if name.startswith("--"):
        return next((option for option in forbidden if option.startswith(name)), None)
    # A value may follow a short option without a blank.
    return next((option for option in forbidden if not option.startswith("--") and name.startswith(option)), None)
