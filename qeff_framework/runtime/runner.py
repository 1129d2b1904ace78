"""What the loaded programs of all tasks share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from qeff_framework.single_pass import EncoderRunner
    from qeff_framework.tokenization import TextTokenizer


class CompiledRunner:
    """A loaded program. Use it as a context manager, or call `close`."""

    def __init__(self, session: ExecutionSession) -> None:
        self.session = session
        self.compiled = session.compiled
        self._tokenizer: TextTokenizer | None = None

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that the artifact carries, or `None`."""
        directory = self.compiled.directory / "tokenizer"
        if self._tokenizer is None and directory.is_dir():
            from qeff_framework.tokenization import load_tokenizer

            self._tokenizer = load_tokenizer(directory)
        return self._tokenizer

    @property
    def no_tokenizer(self) -> str:
        """Why texts cannot be read where the artifact carries no tokenizer, as far as it is known, and the remedy."""
        problem = self.compiled.metadata.get("tokenizer_problem")
        told = f": {problem}" if problem else ""
        return (
            f"{self.compiled.directory} carries no tokenizer, so that texts cannot be read{told}; mend that, or save a tokenizer "
            "in the model's folder, and compile again"
        )

    @property
    def info(self) -> Mapping[str, str]:
        """Where it runs: device, simulator or hardware."""
        return self.session.info

    @cached_property
    def _encoder(self) -> EncoderRunner:
        """Feeds programs that read their inputs in one pass."""
        from qeff_framework.single_pass import EncoderRunner

        return EncoderRunner(self.session)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program; see the task's class."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases device and memory. Idempotent."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tokenizer_output(inputs: Mapping[str, Any] | None, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tokenizer output, which is given as one argument or as keywords."""
    given = given_tensors(**tensors)
    if inputs is not None and given is not None:
        raise InputError(
            f"inputs and {', '.join(given)} were given; give tokenizer output once, as inputs or as keywords"
        )
    if inputs is None and given is None:
        raise InputError("no inputs were given; give what a tokenizer returns: input_ids and attention_mask")
    return inputs if inputs is not None else given or {}


def given_tensors(**tensors: Any) -> dict[str, Any] | None:
    """The tensors that were given, by name; `None` for none."""
    return {name: value for name, value in tensors.items() if value is not None} or None


def carried_config(directory: Path) -> Mapping[str, Any]:
    """The Hugging Face config that the artifact carries."""
    file = directory / "config.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content
