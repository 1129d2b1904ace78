"""Whether diffusers is there."""

from __future__ import annotations

import importlib.util
from typing import Final

from qeff_framework.errors import InputError

#: Packages of the extra without which no pipeline is read or run, by the module that is imported.
_PACKAGES: Final = {"diffusers": "diffusers", "accelerate": "accelerate", "PIL": "pillow"}


def require_diffusers() -> None:
    """Raises `InputError` with the remedy where a package of the extra is missing."""
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"pipelines of diffusers need packages that are not installed ({', '.join(missing)}): pip install "
            "'qeff-framework[diffusion]'"
        )
