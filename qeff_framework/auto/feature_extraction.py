"""Embeddings with text encoders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qeff_framework.auto.dispatch import has_encoder_alone
from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import POOLINGS, Task
from qeff_framework.errors import OptionError
from qeff_framework.shapes import EncoderShapes
from qeff_framework.sources import CheckpointSource, ModelSource, pooling_identity
from qeff_framework.sources.sentence_transformers import EmbeddingHead, TextPreparation
from qeff_framework.sources.tokenizer_files import lower_casing

if TYPE_CHECKING:
    import torch

#: What `QEFFAutoModelForFeatureExtraction` takes as ``pooling``.
Pooling = str | Sequence[str] | Callable[..., Any] | None


class QEFFAutoModelForFeatureExtraction(TaskModel):
    """A text encoder whose output are embeddings.

    ``compile`` takes ``seq_len=128`` (or several lengths) and ``batch_size=1`` beside the backend's options.
    ``generate`` takes texts or tokenizer output and returns an array: ``[N, hidden]`` with pooling, ``[N, S, hidden]``
    without.

    Args:
        model: a Transformers encoder in float32, or a source that can load one.
        pooling: ``"mean"``, ``"cls"``, ``"max"``, ``"lasttoken"``, ``"weightedmean"``, ``"mean_sqrt_len_tokens"``, several
            (their results side by side), or a function of ``(last_hidden_state [B, S, H], attention_mask [B, S])``, also a torch
            module with weights; computed inside the graph. `None` returns the last hidden state. ``"auto"`` does all that a
            sentence-transformers checkpoint asks for (poolings, dense layers, normalisation, ...) or the ``pooling_type`` of a
            GGUF file names, and for any other model nothing. Any other value replaces all of these modules; how the checkpoint
            prepares texts holds in any case.

    Raises:
        OptionError: the pooling is unknown.
        UnsupportedModelError: a sentence-transformers checkpoint asks for what the graph cannot carry.
    """

    task: ClassVar[Task] = "encoder"
    transformers_class = "AutoModel"
    shapes = EncoderShapes

    def __init__(self, model: torch.nn.Module | ModelSource, *, pooling: Pooling = "auto") -> None:
        super().__init__(model)
        folder = self._source.sentence_transformers()
        self._texts: TextPreparation | None = folder.texts(self.config) if folder else None
        self._head: EmbeddingHead | None = None
        if pooling == "auto":
            self._head = folder.head() if folder else None
            # A checkpoint that asks for one pooling and nothing else shares its export with those who name that pooling.
            pooling = self._head.single_pooling if self._head else self._source.stated_pooling()
            if pooling is not None:
                self._head = None
        _check_names(pooling)
        self._pooling = pooling

    @property
    def pooling(self) -> Pooling:
        """How token vectors become embeddings: what was given or, in words, what the checkpoint asks for."""
        return str(self._head) if self._head else self._pooling

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        pooling: Pooling = "auto",
        **hf_kwargs: Any,
    ) -> Self:
        """Takes a checkpoint; see `QEFFBaseModel.from_pretrained` and the class for ``pooling``."""
        source = CheckpointSource(pretrained_model_name_or_path, hf_kwargs)
        cls._check_architecture(source)
        return cls(source, pooling=pooling)

    def _loading_class(self) -> str:
        return "AutoModelForTextEncoding" if has_encoder_alone(self.config) else self.transformers_class

    def _export_key(self) -> Mapping[str, object]:
        pooling = {"modules": self._head.identity()} if self._head else pooling_identity(self._pooling)
        return {"pooling": pooling, **({"texts": self._texts.as_json()} if self._texts else {})}

    def _export_arguments(self) -> Mapping[str, Any]:
        from qeff_framework.export.pooling import resolve_pooling
        from qeff_framework.sources.embedding_head import build_head

        if self._head:
            return {"pooling": build_head(self._head)}
        # A hook that exports by itself may know a single pooling by its name.
        return {"pooling": self._pooling if isinstance(self._pooling, str) else resolve_pooling(self._pooling)}

    def _complete_export(self, directory: Path) -> Mapping[str, Any]:
        """Makes the artifact's tokenizer lower-case texts where the checkpoint asks for it; tells the runtime the rest."""
        if self._texts is None:
            return {}
        lowered = self._texts.lower_case and lower_casing(directory / "tokenizer")
        return {"texts": {**self._texts.as_json(), "lower_case": lowered}}


def _check_names(pooling: Pooling) -> None:
    if pooling is None or callable(pooling):
        return
    names = [pooling] if isinstance(pooling, str) else list(pooling)
    unknown = [name for name in names if name not in POOLINGS]
    if unknown or not names:
        raise OptionError(
            f"unknown pooling {', '.join(map(repr, unknown)) or repr(pooling)}; it is one of {', '.join(POOLINGS)} or several of "
            "them, auto, None or a function"
        )
