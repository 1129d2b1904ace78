"""The JSON files of a checkpoint that an artifact carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qeff_framework.errors import CheckpointError


def read_json_object(file: Path) -> dict[str, Any]:
    """Returns the object in `file`; an empty one where there is no such file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return content
