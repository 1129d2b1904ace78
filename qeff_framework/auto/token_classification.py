"""Class scores of the tokens of texts: names, parts of speech."""

from __future__ import annotations

from typing import ClassVar

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.shapes import EncoderShapes


class QEFFAutoModelForTokenClassification(TaskModel):
    """A classifier of tokens: an encoder or a decoder with a head that scores each token.

    ``compile`` takes ``seq_len=128`` (or several lengths) and ``batch_size=1`` beside the backend's options.
    ``generate`` takes tokenizer output and returns the logits ``[N, S, labels]``, with S as given; those of padding mean
    nothing. The loaded program knows the ``labels``.

    Example::

        model = QEFFAutoModelForTokenClassification.from_pretrained("dslim/bert-base-NER")
        model.compile(backend="ort_sim", seq_len=[32, 128])
        logits = model.generate(tokenizer(["My name is Sarah.", "I live in London."], padding=True))
    """

    task: ClassVar[Task] = "token-classification"
    transformers_class = "AutoModelForTokenClassification"
    shapes = EncoderShapes
