"""``python -m QEfficient.cloud.export``: a model as a portable graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from QEfficient._compat.commands import Command, run
from QEfficient._compat.old_api import qualcomm_efficient_converter


def get_onnx_model_path(
    model_name: str,
    cache_dir: str | None = None,
    tokenizer: Any = None,
    hf_token: str | None = None,
    local_model_dir: str | None = None,
    full_batch_size: int | None = None,
) -> str:
    """The path of the model's graph, exporting it if needed."""
    del tokenizer, full_batch_size
    return qualcomm_efficient_converter(
        model_name, cache_dir=cache_dir, hf_token=hf_token, local_model_dir=local_model_dir
    )[1]


def main(
    model_name: str,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    local_model_dir: str | None = None,
    full_batch_size: int | None = None,
) -> None:
    """Exports the model and prints the path of its graph, which ``QEfficient.cloud.compile`` takes."""
    del full_batch_size
    print(get_onnx_model_path(model_name, cache_dir, None, hf_token, local_model_dir))


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = Command(prog="python -m QEfficient.cloud.export", description="Exports a model to ONNX.")
    parser.loading()
    parser.flag("full_batch_size", type=int, help="no effect: one graph serves batches and continuous batching")
    values = parser.parsed(arguments)
    return run(lambda: main(**values))


if __name__ == "__main__":
    sys.exit(command())
