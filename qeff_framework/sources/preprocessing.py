"""What a checkpoint brings along to prepare inputs with: its tokenizer, and its processor of images or sound."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qeff_framework.artifacts.disk import is_disk_full
from qeff_framework.errors import CheckpointError
from qeff_framework.progress import report
from qeff_framework.rare_collections import rare_collections
from qeff_framework.sources import arguments as known
from qeff_framework.sources import files
from qeff_framework.sources.checkpoint_files import CheckpointFiles
from qeff_framework.sources.gguf_header import library_reads_vocabulary, quick_reading
from qeff_framework.sources.gguf_merges import lean_merges
from qeff_framework.sources.gguf_metadata import refuse_unknown_split
from qeff_framework.sources.lora import LoraAdapter
from qeff_framework.sources.places import LocalFolder
from qeff_framework.sources.quiet import first_line, missing_library, quiet_transformers
from qeff_framework.sources.tokenizers import SERIALIZED, CheckpointTokenizer, unfit_class

logger = logging.getLogger(__name__)


class Preprocessing:
    """Loads the tokenizer and the processor of a checkpoint, or those that were saved with its adapter."""

    def __init__(
        self, of: CheckpointFiles, name: str, *, adapter: LoraAdapter | None, identity: Callable[[], object]
    ) -> None:
        """Loads nothing yet.

        Args:
            of: the checkpoint.
            name: the model's, for people.
            adapter: that of the model.
            identity: stands for the files, and for all that decides what is read from them.
        """
        self._files, self._name, self._adapter = of, name, adapter
        self._tokenizer_of = adapter
        self._tokenizer = CheckpointTokenizer(self._load_tokenizer, identity, self._doubts_about_tokenizer)

    def files_of_adapter(self) -> dict[str, Path]:
        """The files by name that are read beside the checkpoint's own."""
        return {**self._saved_tokenizer(), **({} if self._adapter is None else self._adapter.processor_files())}

    def check_files(self) -> None:
        """Raises `CheckpointError` for files beside the weights that are damaged, before Transformers reads them."""
        self._files.check_companions()
        if tokenizer := self._saved_tokenizer():
            files.check_companions(tokenizer[files.TOKENIZER_CONFIG].parent)

    # --- tokenizer ----------------------------------------------------------------------------------------------------

    def take_tokenizer_of(self, adapter: LoraAdapter) -> None:
        """Reads texts with the tokenizer that was saved with `adapter`, if any."""
        self._tokenizer_of = adapter

    def reads_texts_as(self, adapter: LoraAdapter) -> bool:
        """Whether the tokenizer has the tokens and the chat template of the one that was saved with `adapter`.

        One that cannot be loaded here is no other one: what reads texts says so.
        """
        import transformers

        if adapter is self._tokenizer_of or not adapter.tokenizer_files():
            return True
        with contextlib.suppress(Exception), quiet_transformers():
            ours = self._tokenizer.tokenizer()
            other = transformers.AutoTokenizer.from_pretrained(**self._arguments_of(adapter))
            return bool(ours.get_vocab() == other.get_vocab() and ours.chat_template == other.chat_template)
        return True

    def tokenizer_problem(self) -> str | None:
        """Why the tokenizer that the checkpoint comes with cannot be loaded here; `None` if it can, or there is none.

        Raises:
            CheckpointError: one of its files is damaged.
        """
        if not self._has_tokenizer_files():
            return None
        reason = self._tokenizer.problem()
        if reason is None:
            return None
        self.check_files()
        return f"the tokenizer of {self._name} cannot be loaded: {reason}"

    def _doubts_about_tokenizer(self) -> str:
        """What the files of a tokenizer say about why it cannot be loaded; empty where they say nothing."""
        if self._files.gguf or self._saved_tokenizer():
            return ""
        path, config = self._files.optional_file(SERIALIZED), self._files.tokenizer_config()
        return "" if path is None or "auto_map" in config else unfit_class(path, config.get("tokenizer_class"))

    def require_tokenizer(self) -> None:
        """Raises `CheckpointError` with the reason where texts cannot be read with the checkpoint's own tokenizer."""
        reason = self._tokenizer.problem()
        if reason is not None:
            problem = self.tokenizer_problem()
            told = problem or f"{self._name} comes with no tokenizer that Transformers can load: {reason}"
            raise CheckpointError(f"{told}; without it texts cannot be read, only token ids in Python")

    def tokenizer(self) -> Any:
        """The tokenizer of Transformers. `require_tokenizer` must have passed."""
        return self._tokenizer.tokenizer()

    def has_chat_template(self) -> bool:
        """Whether the tokenizer renders conversations. `require_tokenizer` must have passed."""
        return self._tokenizer.has_chat_template()

    def save_tokenizer(self, directory: Path) -> None:
        """Writes the tokenizer to a folder of `directory`, unless it is there or cannot be loaded."""
        if (directory / files.TOKENIZER).exists() or self.tokenizer_problem() is not None:
            return
        try:
            self._tokenizer.save(directory / files.TOKENIZER)
        except Exception as error:
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            if self._has_tokenizer_files():
                raise CheckpointError(
                    f"the tokenizer of {self._name} could be loaded before and cannot any more: {first_line(error)}; run again"
                ) from error
            logger.info("%s comes with no tokenizer", self._name)

    def forget_tokenizer(self) -> None:
        """Gives its memory back; it is loaded again when it is asked for."""
        self._tokenizer.forget()

    def _saved_tokenizer(self) -> dict[str, Path]:
        """The files by name of the tokenizer that was saved with an adapter; empty where there is none."""
        return {} if self._tokenizer_of is None else self._tokenizer_of.tokenizer_files()

    def _has_tokenizer_files(self) -> bool:
        place = self._files.place
        if self._saved_tokenizer() or self._files.gguf or not isinstance(place, LocalFolder):
            return True
        return files.has_tokenizer_files(name for name, _ in files.companion_files(place.root))

    def _load_tokenizer(self) -> Any:
        import transformers

        report(f"reading the tokenizer of {self._name}")
        if self._tokenizer_of is not None and self._saved_tokenizer():
            # Tokens were added for the adapter, or it was trained with another template.
            return transformers.AutoTokenizer.from_pretrained(**self._arguments_of(self._tokenizer_of))
        arguments = self._files.loader_arguments(self._files.tokenizer_config())
        if self._files.gguf:
            refuse_unknown_split(self._files.file(self._files.gguf))
        with quick_reading(with_vocabulary=not library_reads_vocabulary()), lean_merges(), rare_collections():
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._files.location, **arguments)
        self._files.refuse_stale(type(tokenizer))
        return tokenizer

    def _arguments_of(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` for what was saved with an adapter."""
        fetching = {name: value for name, value in self._files.arguments.items() if name in known.FETCHING}
        return {**fetching, known.TRUST: self._files.trusted, **adapter.tokenizer_arguments()}

    # --- processor ----------------------------------------------------------------------------------------------------

    def processor(self, part: str = "AutoProcessor") -> Any:
        """The processor of Transformers that prepares images or sound: the adapter's, if one was saved with it, else the base's.

        Args:
            part: the class that loads what must be there of it. A classifier of sound comes without a tokenizer, which a
                processor of the same type cannot do without.

        Raises:
            CheckpointError: none can be loaded.
        """
        import transformers

        arguments = {"pretrained_model_name_or_path": self._files.location, **self._files.loader_arguments()}
        if self._adapter is not None and self._adapter.processor_files():
            arguments = self._arguments_of(self._adapter)
        problem: Exception | None = None
        for name in dict.fromkeys(("AutoProcessor", part)):
            try:
                with quiet_transformers():
                    load: Any = getattr(transformers, name).from_pretrained
                    found = load(**arguments)
                # Where the folder has nothing else, `AutoProcessor` returns the tokenizer.
                if not isinstance(found, transformers.PreTrainedTokenizerBase):
                    return found
                problem = CheckpointError("there is a tokenizer alone, which reads neither images nor sound")
            except Exception as error:  # noqa: BLE001  (whatever a processor raises is told)
                problem = error
        raise self._told_of_processor(problem) from problem

    def _told_of_processor(self, problem: Exception | None) -> CheckpointError:
        if isinstance(problem, ImportError):
            return CheckpointError(
                f"the processor of {self._name}, which prepares its input, cannot be loaded here: {missing_library(problem)}"
            )
        # What the library says about its hub is no help with a folder.
        told = first_line(problem).partition(". If you were trying to load it from")[0] if problem is not None else ""
        names = ("preprocessor_config.json", "processor_config.json")
        stated = any(self._files.optional_file(name) for name in names)
        missing = (
            "tokenizer.json, or the vocabulary of its tokenizer, which the processor holds as well"
            if stated and not self._has_tokenizer_files()
            else "preprocessor_config.json or processor_config.json"
        )
        return CheckpointError(
            f"the processor of {self._name}, which prepares its input, cannot be loaded: {told}; add the checkpoint's {missing}"
        )
