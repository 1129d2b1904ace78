"""Text from text with encoder-decoder language models: translation, summaries."""

from __future__ import annotations

from typing import ClassVar

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.shapes import Seq2SeqLMShapes


class QEFFAutoModelForSeq2SeqLM(TaskModel):
    """An encoder-decoder language model.

    ``compile`` takes ``encoder_seq_len=128`` (or several lengths), ``ctx_len=128`` and ``batch_size=1`` beside the backend's
    options. ``generate`` takes a tokenizer and prompts, or tokenizer output; see
    `qeff_framework.runtime.CompiledSeq2SeqLM.generate`.

    Example::

        model = QEFFAutoModelForSeq2SeqLM.from_pretrained("google-t5/t5-small")
        model.compile(backend="ort_sim", encoder_seq_len=[32, 128], ctx_len=64)
        print(model.generate(prompts=["translate English to German: My name is Sarah."]).generated_texts)
    """

    task: ClassVar[Task] = "seq2seq-lm"
    transformers_class = "AutoModelForSeq2SeqLM"
    shapes = Seq2SeqLMShapes
