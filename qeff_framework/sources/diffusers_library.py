"""Whether diffusers is there."""

from __future__ import annotations

import importlib.util

from qeff_framework.errors import InputError


def require_diffusers() -> None:
    """Raises `InputError` with the remedy where a package of the extra is missing."""
    missing = [name for name in ("diffusers", "accelerate", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"pipelines need {' and '.join(missing)}, which is not installed: pip install qeff-framework[diffusion]"
        )
