"""Class scores of texts."""

from __future__ import annotations

from typing import ClassVar

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
