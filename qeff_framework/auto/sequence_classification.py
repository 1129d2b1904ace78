"""Class scores of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.shapes import EncoderShapes


class QEFFAutoModelForSequenceClassification(TaskModel):
    """A classifier of texts: an encoder or a decoder with a classification head.

    ``compile`` takes ``seq_len=128`` (or several lengths) and ``batch_size=1`` beside the backend's options.
    ``generate`` takes tokenizer output and returns the logits ``[N, labels]``; the loaded program knows the ``labels``.
    A decoder reads its scores at the last token that is no padding, so its config must name a ``pad_token_id``.

    Example::

        model = QEFFAutoModelForSequenceClassification.from_pretrained(
            "distilbert-base-uncased-finetuned-sst-2-english"
        )
        model.compile(backend="ort_sim", seq_len=[32, 128])
        logits = model.generate(tokenizer(["a good film", "a bad one"], padding=True))
    """

    task: ClassVar[Task] = "sequence-classification"
    transformers_class = "AutoModelForSequenceClassification"
    shapes = EncoderShapes

    def _export_key(self) -> Mapping[str, object]:
        return {**super()._export_key(), **self._activation()}

    def _complete_export(self, directory: Path) -> Mapping[str, Any]:
        return {**super()._complete_export(directory), **self._activation()}

    def _activation(self) -> dict[str, str]:
        """What sentence-transformers' CrossEncoder does with the logits of this checkpoint, where it says so.

        Older versions say it in the config itself.
        """
        folder = self._source.sentence_transformers()
        older = self.config.get("sentence_transformers")
        stated = (
            (folder.score_activation() if folder else None)
            or (older.get("activation_fn") if isinstance(older, Mapping) else None)
            or self.config.get("sbert_ce_default_activation_function")
        )
        return {"score_activation": str(stated).rpartition(".")[2]} if stated else {}
