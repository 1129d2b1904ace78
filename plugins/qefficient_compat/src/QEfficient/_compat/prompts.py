"""Prompts as scripts and commands give them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qeff_framework.plugin_api import InputError
from QEfficient._compat.notices import logger


def read_prompts_txt_file(prompts_txt_file_path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file, each a prompt."""
    text = Path(prompts_txt_file_path).read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.split("\n") if line.strip()]


def get_input_prompts(
    prompt: str | Sequence[str] | None, prompts_txt_file_path: str | os.PathLike[str] | None
) -> list[str]:
    """The prompts of a call: those of the file where one is given.

    Raises:
        InputError: neither was given, or the file holds none.
    """
    if prompts_txt_file_path is not None:
        if prompt is not None:
            logger.warning("prompts and a file of prompts were given: those of the file are taken")
        prompt = read_prompts_txt_file(prompts_txt_file_path)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not prompts:
        raise InputError(
            "there are no prompts; give prompts=[...] (--prompt) or prompts_txt_file_path (--prompts_txt_file_path)"
        )
    return prompts


def fix_prompts(prompt: Sequence[str], batch_size: int, full_batch_size: int | None = None) -> list[str]:
    """At least as many prompts as are run together: fewer are repeated, from the first one on. None is dropped."""
    needed = batch_size if full_batch_size is None else full_batch_size
    if len(prompt) >= needed:
        return list(prompt)
    logger.warning("%d prompts for a batch of %d: they are repeated", len(prompt), needed)
    return [prompt[index % len(prompt)] for index in range(needed)]
