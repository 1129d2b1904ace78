"""What the results of all tasks tell: the program, where it ran, which text a line belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from qeff_framework.runtime import CompiledRunner
    from qeff_framework.tokenization import TextTokenizer


def where(runner: CompiledRunner) -> dict[str, Any]:
    """The part of a JSON document that says which program ran where."""
    compiled = runner.compiled
    return {
        "backend": compiled.backend,
        "device": dict(runner.info),
        "task": compiled.task,
        "model": compiled.metadata.get("model_name", ""),
        "artifact": str(artifact_path(runner)),
    }


def artifact_path(runner: CompiledRunner) -> Path:
    """The directory of the program."""
    return runner.compiled.directory.absolute()


def backend_line(runner: CompiledRunner) -> str:
    """The backend and where it ran; a simulator is called one."""
    info = dict(runner.info)
    simulated = info.pop("simulator", "").lower() in ("yes", "true", "1")
    info.pop("note", None)  # stands in a line of its own
    told = [*(["simulator"] if simulated else []), *(f"{name} {value}" for name, value in info.items() if value)]
    return f"{runner.compiled.backend} ({', '.join(told)})" if told else runner.compiled.backend


def label(index: int, prompts: Sequence[Any]) -> str:
    """What stands before the line of a prompt; empty where there is one prompt only."""
    return f"[{index}] " if len(prompts) > 1 else ""


def needed_tokenizer(runner: CompiledRunner) -> TextTokenizer:
    """The tokenizer that the artifact carries. Raises `InputError` where there is none."""
    if runner.tokenizer is None:
        raise InputError(f"{runner.no_tokenizer}; or use the Python API with token ids")
    return runner.tokenizer
