"""The distribution that knows the card: lowering and execution are those of the backend ``qaic``."""

from __future__ import annotations

import importlib
from typing import Any

from qeff_framework.plugin_api import BackendUnavailableError

_REMEDY = "pip install 'qeff-qnn-backend[aic]'"


def shared() -> Any:
    """The module `qaic_backend.shared`. `Any`: the distribution may be missing.

    Raises:
        BackendUnavailableError: it is not installed, or too old.
    """
    try:
        return importlib.import_module("qaic_backend.shared")
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'qnn', target aic, lowers and runs models with the distribution qeff-qaic-backend, which does not load "
            f"({error}): {_REMEDY}"
        ) from error
