"""The tokenizer of a checkpoint: whether it can be loaded here, and how an artifact carries it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qeff_framework.artifacts import cache_key, store_root
from qeff_framework.sources.code_digests import core_digest
from qeff_framework.sources.quiet import first_line, quiet_transformers
from qeff_framework.sources.remote_code import is_remote, trust_hint

#: Tokens of a vocabulary that code of a checkpoint is tried with.
_SAMPLES = 500
#: Files of a tokenizer: its settings, and the whole of it.
_CONFIG, SERIALIZED = "tokenizer_config.json", "tokenizer.json"


class CheckpointTokenizer:
    """Loads a tokenizer once. That it could be loaded is remembered in the store, that it could not never is."""

    def __init__(
        self, load: Callable[[], Any], identity: Callable[[], object], doubts: Callable[[], str] = lambda: ""
    ) -> None:
        """`load` returns a Transformers tokenizer or raises; `identity` stands for the checkpoint's files.

        `doubts` says what in them may be wrong where `load` has raised; empty where nothing is seen.
        """
        self._load = load
        self._identity = identity
        self._doubts = doubts
        self._tokenizer: Any = None

    def problem(self) -> str | None:
        """Why the tokenizer cannot be loaded; `None` if it can. Transformers is asked only when it never could before."""
        memo = self._memo()
        is_known = self._tokenizer is not None and not is_remote(type(self._tokenizer))
        if memo.is_file() or (is_known and made_up(self._tokenizer) is None):
            return None
        try:
            self.tokenizer()
        except Exception as error:  # noqa: BLE001 - Transformers has no one error for "there is no tokenizer"
            hint = trust_hint(error)
            doubts = "" if hint or isinstance(error, ImportError) else self._doubts()
            return doubts or f"{first_line(error)}{hint}"
        if (reason := made_up(self._tokenizer) or _own_reading(self._tokenizer)) is not None:
            return reason
        # A memo only: where it cannot be written, the next run asks again.
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            draft = memo.with_suffix(f".{os.getpid()}")
            draft.write_text(
                json.dumps({"loads": True, "has_chat_template": self.has_chat_template()}), encoding="utf-8"
            )
            draft.replace(memo)
        return None

    def tokenizer(self) -> Any:
        """The tokenizer. Raises whatever Transformers raises."""
        if self._tokenizer is None:
            with quiet_transformers():
                self._tokenizer = self._load()
        return self._tokenizer

    def forget(self) -> None:
        """Gives the memory of the tokenizer back; it is loaded again when it is asked for."""
        self._tokenizer = None

    def has_chat_template(self) -> bool:
        """Whether it can render conversations. Raises whatever Transformers raises, where it was never loaded before."""
        if self._tokenizer is None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return bool(json.loads(self._memo().read_text(encoding="utf-8"))["has_chat_template"])
        return getattr(self.tokenizer(), "chat_template", None) is not None

    def save(self, directory: Path) -> None:
        """Writes the tokenizer. Raises whatever Transformers raises, and then forgets that it could be loaded."""
        try:
            tokenizer = self.tokenizer()
        except Exception:
            self._memo().unlink(missing_ok=True)
            raise
        save_tokenizer(tokenizer, directory)

    def _memo(self) -> Path:
        import importlib_metadata

        versions = [importlib_metadata.version(name) for name in ("transformers", "tokenizers")]
        key = cache_key({"model": self._identity(), "versions": versions, "core": core_digest()})
        return store_root() / "tokenizers" / f"{key[:16]}.json"


def made_up(tokenizer: Any) -> str | None:
    """Why the tokenizer is none of the checkpoint's; `None` if it is.

    Where the files of a vocabulary are missing, most classes of Transformers come with a few special tokens of their own and no
    error, and every text becomes a row of unknown tokens or of none.
    """
    kind, read = type(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    if read is None or is_remote(kind):
        return None
    try:
        with quiet_transformers():
            of_class = kind().backend_tokenizer
    except Exception:  # noqa: BLE001 - a class that cannot be made without files, each with its own error
        return None
    size = of_class.get_vocab_size(with_added_tokens=False)
    if read.get_vocab_size(with_added_tokens=False) != size or read.get_vocab(False) != of_class.get_vocab(False):
        return None
    names = sorted({*kind.vocab_files_names.values(), SERIALIZED} - {_CONFIG})
    folder = Path(str(getattr(tokenizer, "name_or_path", "")))
    if any((folder / name).is_file() for name in names):
        return None  # They say what the class says.
    return (
        f"none of the files of its vocabulary is there ({', '.join(names)}), and a {kind.__name__} "
        "without them knows no text; add the files of the tokenizer that the model was trained with"
    )


def unfit_class(file: Path, tokenizer_class: object) -> str:
    """Why a tokenizer cannot be loaded that has a ``tokenizer.json``: of the file, or of the class that is to read it.

    Empty where the file can be read and no class is stated.
    """
    import importlib_metadata
    from tokenizers import Tokenizer

    try:
        kind = type(Tokenizer.from_file(str(file)).model).__name__
    except Exception as error:  # noqa: BLE001 - the library raises a bare Exception for whatever it cannot parse
        return (
            f"{file} cannot be read by the installed tokenizers {importlib_metadata.version('tokenizers')}: {first_line(error)}; "
            "it was written by a newer release, which has to be installed, or it is damaged: restore it"
        )
    if not isinstance(tokenizer_class, str):
        return ""
    return (
        f"its {_CONFIG} states tokenizer_class={tokenizer_class!r}, which does not read the {kind} vocabulary of its "
        f'{SERIALIZED}; write "PreTrainedTokenizerFast" there, which takes that file as it is'
    )


def _own_reading(tokenizer: Any) -> str | None:
    """Why an artifact, which is read without the checkpoint's code, would read texts otherwise; `None` if it would not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not is_remote(type(tokenizer)):
        return None
    ordinary = sorted(set(tokenizer.get_vocab().values()) - {*tokenizer.all_special_ids})
    # Tokens of the whole vocabulary, and words with what code may change: case, spaces, digits, accents.
    some = ordinary[:: max(1, len(ordinary) // _SAMPLES)]
    texts = [backend.decode([token]) for token in some]
    for text in (*texts, " ".join(texts), " The  Price, 12345 naïve\n\n"):
        if list(tokenizer.encode(text)) != list(backend.encode(text).ids):
            return (
                f"its class {type(tokenizer).__name__}, which is code of the checkpoint, reads {text!r:.40} otherwise than its "
                "tokenizer.json, and an artifact is read without that code; pass tokenizer=AutoTokenizer.from_pretrained(...) in "
                "Python"
            )
    return None


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes a Transformers tokenizer so that an artifact can be read with it. Raises `OSError` where it cannot be written."""
    # Some classes alone know which inputs their model reads; the artifact is read without them.
    tokenizer.init_kwargs["model_input_names"] = list(tokenizer.model_input_names)
    try:
        with quiet_transformers():
            tokenizer.save_pretrained(directory)
    except Exception as error:
        # The library in Rust has one type for all errors.
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None or isinstance(error, OSError):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(directory)) from error
