"""Text generation with artifacts: results, prompts and files of prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeff_framework.plugin_api import CompiledModel, InputError
from QEfficient._compat.execution import generate_texts, load, sizes_of
from QEfficient._compat.old_api import cloud_ai_100_exec_kv
from QEfficient._compat.prompts import fix_prompts, get_input_prompts, read_prompts_txt_file
from QEfficient._compat.results import CloudAI100ExecInfo, CloudAI100ExecInfoNew, PerfMetrics
from QEfficient.generation.cloud_infer import QAICInferenceSession


def get_compilation_dims(qpc_path: str | os.PathLike[str]) -> tuple[int, int, int | None]:
    """``batch_size``, ``ctx_len`` and ``full_batch_size`` (`None` without continuous batching) of an artifact."""
    batch_size, full_batch_size, ctx_len = sizes_of(CompiledModel.load(Path(qpc_path)))
    return batch_size, ctx_len, full_batch_size


def check_batch_size_and_num_prompts(
    prompt: str | Sequence[str] | None, prompts_txt_file_path: str | None, batch_size: int
) -> list[str]:
    """The prompts of a command, in whole batches.

    Raises:
        InputError: their number is no multiple of the batch.
    """
    prompts = get_input_prompts(prompt, prompts_txt_file_path)
    if len(prompts) % batch_size:
        raise InputError(f"{len(prompts)} prompts were given for a batch of {batch_size}; give a multiple of it")
    return prompts


def print_latency_stats_kv(prompt: Sequence[str], exec_info: CloudAI100ExecInfo, automation: bool = False) -> None:
    """Prints how long a run took; with `automation` the prompts and texts too."""
    if automation:
        print(f"input={list(prompt)}\noutput={exec_info.generated_texts}")
    print(exec_info)


class TextGeneration:
    """A loaded artifact that generates text again and again."""

    def __init__(
        self,
        tokenizer: Any,
        qpc_path: str | os.PathLike[str],
        full_batch_size: int | None = None,
        ctx_len: int | None = None,
        device_id: Sequence[int] | int | None = None,
        **kwargs: Any,
    ) -> None:
        del full_batch_size, ctx_len
        self.tokenizer = tokenizer
        self._kwargs = kwargs
        self._program = load(qpc_path, device_id)

    def generate(
        self, prompt: str | Sequence[str], generation_len: int | None = None, **kwargs: Any
    ) -> CloudAI100ExecInfo:
        """Generates text for prompts."""
        settings = {**self._kwargs, **kwargs}
        return generate_texts(self._program, self.tokenizer, prompt=prompt, generation_len=generation_len, **settings)


__all__ = [
    "CloudAI100ExecInfo",
    "CloudAI100ExecInfoNew",
    "PerfMetrics",
    "QAICInferenceSession",
    "TextGeneration",
    "check_batch_size_and_num_prompts",
    "cloud_ai_100_exec_kv",
    "fix_prompts",
    "get_compilation_dims",
    "get_input_prompts",
    "print_latency_stats_kv",
    "read_prompts_txt_file",
]
