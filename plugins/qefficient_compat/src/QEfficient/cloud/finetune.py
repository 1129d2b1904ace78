"""``python -m QEfficient.cloud.finetune``: refused, with what to do instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from QEfficient._compat.commands import run
from QEfficient._compat.notices import NotSupportedError


def main(**kwargs: Any) -> None:
    """Refuses: training is no part of qeff_framework."""
    del kwargs
    raise NotSupportedError(
        "QEfficient.cloud.finetune is not supported: qeff_framework runs models and trains none; train with transformers and "
        "peft, and give the folder of the adapter to QEffAutoPeftModelForCausalLM"
    )


def command(arguments: Sequence[str] | None = None) -> int:
    """Refuses whatever the arguments are; returns the exit code."""
    del arguments
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
