"""``python -m QEfficient.cloud.execute``: text from an artifact."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from QEfficient._compat.commands import Command, run
from QEfficient._compat.old_api import cloud_ai_100_exec_kv
from QEfficient.utils import check_and_assign_cache_dir, load_hf_tokenizer


def main(
    model_name: str | None,
    qpc_path: str,
    device_group: Sequence[int] | None = None,
    local_model_dir: str | None = None,
    prompt: str | Sequence[str] | None = None,
    prompts_txt_file_path: str | None = None,
    generation_len: int | None = None,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    full_batch_size: int | None = None,
) -> None:
    """Generates text; without a model's name the artifact's own tokenizer is used."""
    del full_batch_size
    place = local_model_dir or model_name
    cache_dir = check_and_assign_cache_dir(local_model_dir, cache_dir)
    cloud_ai_100_exec_kv(
        load_hf_tokenizer(place, cache_dir, hf_token) if place else None,
        qpc_path,
        prompt,
        prompts_txt_file_path,
        device_group,
        generation_len,
    )


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = Command(prog="python -m QEfficient.cloud.execute", description="Generates text with an artifact.")
    parser.flag("qpc_path", required=True, help="the artifact's directory")
    parser.flag("model_name", help="the model whose tokenizer is used; by default that of the artifact")
    parser.flag("local_model_dir", help="its folder")
    parser.flag("cache_dir", help="folder for downloads")
    parser.flag("hf_token", help="token for private models")
    parser.flag("full_batch_size", type=int, help="no effect: the artifact knows it")
    parser.devices()
    parser.prompting()
    values = parser.parsed(arguments)
    return run(lambda: main(**values))


if __name__ == "__main__":
    sys.exit(command())
