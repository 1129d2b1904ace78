"""Embeddings with text encoders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.errors import OptionError
from qeff_framework.shapes import EncoderShapes
from qeff_framework.sources import CheckpointSource, ModelSource, pooling_identity

if TYPE_CHECKING:
    import torch

_POOLINGS = ("mean", "cls", "max", "lasttoken")


class QEFFAutoModelForFeatureExtraction(TaskModel):
    """A text encoder whose output are embeddings.

    ``compile`` takes ``seq_len=128`` (or several lengths) and ``batch_size=1`` beside the backend's options.
    ``generate`` takes tokenizer output and returns an array: ``[N, hidden]`` with pooling, ``[N, S, hidden]``
    without.

    Args:
        model: a Transformers encoder in float32, or a source that can load one.
        pooling: ``"mean"``, ``"cls"``, ``"max"``, ``"lasttoken"`` or a function of ``(last_hidden_state [B, S, H],
            attention_mask [B, S])``, computed inside the graph; `None` returns the last hidden state; ``"auto"``
            takes what a sentence-transformers checkpoint says, else none.
    """

    task: ClassVar[Task] = "encoder"
    transformers_class = "AutoModel"
    shapes = EncoderShapes

    def __init__(
        self, model: torch.nn.Module | ModelSource, *, pooling: str | Callable[..., Any] | None = "auto"
    ) -> None:
        super().__init__(model)
        if isinstance(pooling, str) and pooling not in ("auto", *_POOLINGS):
            raise OptionError(
                f"unknown pooling '{pooling}'; it is one of {', '.join(_POOLINGS)}, auto, None or a function"
            )
        self.pooling = self._source.pooling() if pooling == "auto" else pooling

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        pooling: str | Callable[..., Any] | None = "auto",
        **hf_kwargs: Any,
    ) -> Self:
        """Takes a checkpoint; see `QEFFBaseModel.from_pretrained` and the class for ``pooling``."""
        source = CheckpointSource(pretrained_model_name_or_path, hf_kwargs)
        cls._check_architecture(source)
        return cls(source, pooling=pooling)

    def _export_key(self) -> Mapping[str, object]:
        return {"pooling": pooling_identity(self.pooling)}

    def _export_arguments(self) -> Mapping[str, Any]:
        return {"pooling": self.pooling}
