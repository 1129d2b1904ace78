"""The generator's options (row N6): `--name value` or `--name=value`, no abbreviations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ToolError

_WITH_VALUE = (
    "model",
    "model_prefix",
    "backend",
    "binary_file",
    "backend_binary",
    "output_dir",
    "config_file",
    "dlc_path",
    "data_format_config",
    "log_level",
    "platform_options",
    "profiling_level",
    "profiling_option",
    "set_output_tensors",
    "input_output_tensor_mem_type",
)
_SWITCHES = ("enable_intermediate_outputs", "version", "help")
_LOG_LEVELS = ("error", "warn", "info", "debug", "verbose")


def parse_arguments(argv: Sequence[str]) -> dict[str, str]:
    """The values by option name, without the dashes.

    Raises:
        ToolError: an unknown option, one without its value or given twice, a required one that is missing, a log level.
    """
    values: dict[str, str] = {}
    pending = list(argv)
    while pending:
        name, is_joined, value = pending.pop(0).partition("=")
        key = name.removeprefix("--")
        if not name.startswith("--") or key not in (*_WITH_VALUE, *_SWITCHES):
            raise _refused(f"unrecognized option '{name}'")
        if key in values:
            raise _refused(f"option '{name}' is given twice")
        if key in _WITH_VALUE and not is_joined:
            if not pending or pending[0].startswith("--"):
                raise _refused(f"option '{name}' requires an argument")
            value = pending.pop(0)
        values[key] = value
    for key in ("backend", "binary_file"):
        if not values.get(key):
            raise _refused(f"--{key} is required")
    if not values.get("dlc_path") and not values.get("model"):
        raise _refused("--dlc_path or --model is required")
    if values.get("log_level", "error") not in _LOG_LEVELS:
        raise _refused(f"--log_level is one of {', '.join(_LOG_LEVELS)}, got '{values['log_level']}'")
    return values


def existing_file(values: dict[str, str], option: str) -> Path:
    """The file that an option names.

    Raises:
        ToolError: it does not exist.
    """
    path = Path(values[option])
    if not path.is_file():
        raise _refused(f"--{option} {path}: no such file")
    return path


def _refused(reason: str) -> ToolError:
    return ToolError(f"[ ERROR ] {reason}")
