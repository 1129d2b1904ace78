"""The config of a checkpoint: as its file says it, and as Transformers reads it with the fields that the caller replaces."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qeff_framework.artifacts import cache_key, store_root
from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.progress import report
from qeff_framework.rare_collections import rare_collections
from qeff_framework.sources import arguments as known
from qeff_framework.sources import files, quantisation, remote_code
from qeff_framework.sources.checkpoint_files import CheckpointFiles
from qeff_framework.sources.code_digests import core_digest
from qeff_framework.sources.configs import (
    number_as_text,
    odd_field,
    padding_beyond_vocabulary,
    plain_config,
    rotation_without_base,
    write_json,
)
from qeff_framework.sources.gguf_header import quick_reading
from qeff_framework.sources.gguf_metadata import complete_config
from qeff_framework.sources.quiet import captured_transformers, first_line


class CheckpointConfig:
    """Reads the config of a checkpoint."""

    def __init__(
        self,
        of: CheckpointFiles,
        name: str,
        *,
        overrides: Mapping[str, Any],
        head_mapping: str | None,
        identity: Callable[[], object],
    ) -> None:
        """Reads nothing yet.

        Args:
            of: the checkpoint.
            name: the model's, for people.
            overrides: fields that the caller replaces.
            head_mapping: Transformers' mapping of the heads of an adapter's task; `None` where the head is the checkpoint's.
            identity: stands for the files, and for all that decides what is read from them.
        """
        self._files, self._name, self._overrides = of, name, overrides
        self._head_mapping, self._identity = head_mapping, identity
        #: Transformers' warnings about the config.
        self._said: list[str] = []

    def content(self) -> Mapping[str, Any]:
        """The config, with the fields that the caller replaces.

        It is read from ``config.json``; through Transformers only where fields are replaced, and for a GGUF file, once, since
        that takes many seconds.

        Raises:
            CheckpointError: it is absent or damaged.
        """
        if "config" in self._files.arguments:
            content: Mapping[str, Any] = plain_config(self._files.arguments["config"])
        else:
            content = self._remembered() if self._files.gguf or self._overrides else self._file()
        if isinstance(content.get("architectures"), str):
            # Of a text, each letter would be one.
            content = {**content, "architectures": [content["architectures"]]}
        if self._head_mapping is None:
            return content
        # The head is the adapter's: its base is a language model.
        from transformers.models.auto import modeling_auto

        head = getattr(modeling_auto, self._head_mapping).get(content.get("model_type"))
        return content if head is None else {**content, "architectures": [head]}

    def loaded(self) -> Any:
        """A config of Transformers that the loader may keep and change; with the quantisation that the files state.

        Raises:
            CheckpointError: it is absent or damaged.
        """
        config = self._plain()
        if not self._files.gguf:
            quantisation.state_quantisation(config, self._files.optional_file, self._files.fetched_weights)
        return config

    def check_overrides(self) -> None:
        """Raises `OptionError` for fields that neither the loader nor the config knows."""
        if "config" in self._files.arguments:
            # Transformers would hand them to the constructor of the model, past the config.
            known.refuse_unknown(self._overrides, (), self._files.arguments["config"].model_type)
        if self._memo().is_file():
            return
        config = self._read()
        unknown = [name for name in self._overrides if not known.is_field(config, name)]
        known.refuse_unknown(unknown, [*config.to_dict(), *config.attribute_map], config.model_type)
        self._remembered()

    def doubts(self) -> str:
        """What may be wrong in the config of weights that do not load: the errors of a model's code name no field."""
        content = self.content()
        doubt = (
            number_as_text(self._files.config()) or padding_beyond_vocabulary(content) or rotation_without_base(content)
        )
        if doubt:
            return doubt
        return f"Transformers says: {' '.join(self._said[0].split())}" if self._said else ""

    def _file(self) -> Mapping[str, Any]:
        content = self._files.config()
        if not content.get("model_type"):
            raise CheckpointError(
                f"{self._files.file(files.CONFIG)} names no model_type, so Transformers cannot tell the architecture; is it a "
                "Transformers checkpoint?"
            )
        return content

    def _remembered(self) -> Mapping[str, Any]:
        memo = self._memo()
        with contextlib.suppress(OSError, ValueError):
            content: dict[str, Any] = json.loads(memo.read_text(encoding="utf-8"))
            return content
        content = plain_config(self._read(**self._overrides))
        # A memo only: where it cannot be written, the next run reads again.
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            draft = memo.with_suffix(f".{os.getpid()}")
            write_json(draft, content)
            draft.replace(memo)
        return content

    def _memo(self) -> Path:
        import importlib_metadata

        # What is made of the files depends on both as well.
        parts = {
            "model": self._identity(),
            "core": core_digest(),
            "transformers": importlib_metadata.version("transformers"),
        }
        return store_root() / "configs" / f"{cache_key(parts)[:16]}.json"

    def _plain(self) -> Any:
        if "config" in self._files.arguments:
            return copy.deepcopy(self._files.arguments["config"])
        if self._files.gguf:
            import transformers

            # From what is remembered: reading the file's metadata once more takes long.
            content = dict(self.content())
            return transformers.CONFIG_MAPPING[content["model_type"]].from_dict(content)
        return self._read(**self._overrides)

    @rare_collections()
    def _read(self, **overrides: Any) -> Any:
        import transformers

        gguf = self._files.gguf
        if gguf:
            report(f"reading the metadata of {gguf}")
            files.check_weight_files([self._files.file(gguf)])
        try:
            with captured_transformers() as said, quick_reading():
                config = transformers.AutoConfig.from_pretrained(
                    self._files.location, **self._files.loader_arguments(), **overrides
                )
            # Some are told once in a process: what an earlier reading has told is kept.
            self._said += said
        except Exception as error:
            reason = odd_field(self._files.config()) or f"{first_line(error)}{remote_code.trust_hint(error)}"
            if overrides:
                names, reason = ", ".join(overrides), " ".join(str(error).split())
                raise OptionError(f"from_pretrained: the config does not take {names} as given: {reason}") from error
            if gguf:
                raise CheckpointError(
                    f"the metadata of {self._files.file(gguf)} cannot be read: {reason}; the file is cut or damaged, or its "
                    "architecture is none that the installed Transformers reads from GGUF: download it again, or give the model "
                    "as safetensors"
                ) from error
            raise CheckpointError(f"the config.json of {self._name} cannot be read: {reason}") from error
        if gguf:
            complete_config(config, self._files.file(gguf), given=overrides)
        return config
