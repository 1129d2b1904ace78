"""Embeddings and class scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from QEfficient._compat.execution import check_runtime
from QEfficient._compat.keywords import GENERATE
from QEfficient._compat.models.base import QEFFBaseModel
from QEfficient._compat.translation import translate

_POOLINGS = {"avg": "mean"}


class QEFFAutoModel(QEFFBaseModel):
    """Embeddings: ``generate(tokens)`` returns ``{"output": array}``.

    ``compile`` takes ``seq_len=32``, one length or several, and ``batch_size=1``. Without ``pooling`` the output is the last
    hidden state ``[N, S, H]``, S as given.
    """

    core_class = "QEFFAutoModelForFeatureExtraction"
    default_sizes: ClassVar[Mapping[str, Any]] = {"seq_len": 32}
    own_keywords: ClassVar[tuple[str, ...]] = ("pooling",)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], pooling: Any = None, *args: Any, **kwargs: Any
    ) -> Self:
        """Takes a checkpoint; `pooling` is ``"mean"``, ``"max"``, ``"cls"``, ``"avg"``, or a function of the last hidden state
        and the attention mask.
        """
        return super().from_pretrained(pretrained_model_name_or_path, *args, pooling=pooling, **kwargs)

    @classmethod
    def core_arguments(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        pooling = own.get("pooling")
        return {"pooling": _POOLINGS.get(pooling, pooling) if isinstance(pooling, str) else pooling}

    @classmethod
    def _take_options(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        own = {"pooling": kwargs.pop("pooling", None)}
        super()._take_options(kwargs)
        return cls.core_arguments(own)

    def generate(
        self,
        inputs: Any,
        device_ids: Sequence[int] | int | None = None,
        runtime_ai100: bool = True,
        write_io: bool = False,
        **others: Any,
    ) -> dict[str, Any]:
        """Embeds tokenizer output; the tokens are taken as they are."""
        check_runtime(runtime_ai100)
        others.pop("dtype", None)
        settings = translate("generate", GENERATE, {**others, "write_io": write_io})
        return {"output": self._load(device_ids).generate(_tensors(inputs), prepared=True, **settings)}


class QEFFAutoModelForSequenceClassification(QEFFBaseModel):
    """Class scores: ``generate(tokens)`` returns ``{"logits": tensor}``."""

    core_class = "QEFFAutoModelForSequenceClassification"
    default_sizes: ClassVar[Mapping[str, Any]] = {"seq_len": 32}

    def generate(self, inputs: Any, device_ids: Sequence[int] | int | None = None, **others: Any) -> dict[str, Any]:
        """Classifies tokenizer output; the logits are a torch tensor ``[N, labels]``."""
        import torch

        settings = translate("generate", GENERATE, others)
        return {"logits": torch.from_numpy(self._load(device_ids).generate(_tensors(inputs), **settings))}


def _tensors(inputs: Any) -> dict[str, Any]:
    """Tokenizer output that programs read."""
    return {name: value for name, value in dict(inputs).items() if value is not None}
