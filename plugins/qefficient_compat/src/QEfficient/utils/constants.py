"""Constants that scripts import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from QEfficient._compat.old_api import models_dir

QEFF_MODELS_DIR: Final = str(models_dir())
QEFF_DIR: Final = str(Path(__file__).parents[1])
ROOT_DIR: Final = str(Path(__file__).parents[2])
DEFAULT_AIC_HW_VERSION: Final = "ai100"
DEFAULT_AIC_NUM_CORES: Final = 16


def get_models_dir() -> str:
    """Where it is kept which model a graph was exported from."""
    return os.fspath(models_dir())


class Constants:
    """Sizes and texts that examples are run with."""

    SEQ_LEN: Final = 32
    CTX_LEN: Final = 32
    PROMPT_LEN: Final = 8
    INPUT_STR: Final = ("My name is",)
    #: Downloads lie where Transformers puts them.
    CACHE_DIR: Final[str | None] = None
    GB: Final = 2**30
    MAX_QPC_LIMIT: Final = 30


def __getattr__(name: str) -> Any:
    if name != "QnnConstants":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from qnn_backend.constants import QnnConstants
    except ImportError as error:
        raise ImportError(
            "QnnConstants are those of the backend qnn, which is not installed: pip install 'qeff-qnn-backend[aic]'"
        ) from error
    return QnnConstants
