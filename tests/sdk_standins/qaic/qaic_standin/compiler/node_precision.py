"""The node-precision YAML file (row C19)."""

from __future__ import annotations

from pathlib import Path

import yaml

from .errors import compile_failed

_KEYS = ("FP16NodeInstanceNames", "FP32NodeInstanceNames")


def read_node_precision(path: Path | None) -> dict[str, list[str]]:
    """The file's lists by key; empty without a file.

    Raises:
        CompileError: another key, or a value that is not a list of names.
    """
    if path is None:
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise compile_failed(f"{path.name} is not YAML: {error}") from error
    if not isinstance(document, dict) or not document or not set(document) <= set(_KEYS):
        raise compile_failed(f"{path.name} must be a mapping with the keys {', '.join(_KEYS)}")
    for key, names in document.items():
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise compile_failed(f"{key} in {path.name} must be a list of tensor names")
    return {key: list(names) for key, names in sorted(document.items())}
