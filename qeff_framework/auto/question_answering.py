"""Answers to questions that stand in a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.shapes import EncoderShapes

if TYPE_CHECKING:
    from qeff_framework.single_pass import Answer


class QEFFAutoModelForQuestionAnswering(TaskModel):
    """A model that finds the part of a text that answers a question: an encoder or a decoder with such a head.

    ``compile`` takes ``seq_len=128`` (or several lengths) and ``batch_size=1`` beside the backend's options.
    ``generate`` takes tokenizer output of pairs of question and context, and returns ``start_logits`` and ``end_logits``,
    ``[N, S]`` each, with S as given; those of padding mean nothing. ``answer`` makes a text of them.

    Example::

        model = QEFFAutoModelForQuestionAnswering.from_pretrained("distilbert/distilbert-base-cased-distilled-squad")
        model.compile(backend="ort_sim", seq_len=[128, 384])
        print(model.answer("Where does Sarah live?", "Sarah moved from Paris to London.").text)
    """

    task: ClassVar[Task] = "question-answering"
    transformers_class = "AutoModelForQuestionAnswering"
    shapes = EncoderShapes

    def answer(self, question: str, context: str, **settings: Any) -> Answer:
        """The best answer with the compiled program; see `qeff_framework.runtime.CompiledQuestionAnswering.answer`."""
        from qeff_framework.runtime import CompiledQuestionAnswering

        runner = self._runner or self.load()
        if not isinstance(runner, CompiledQuestionAnswering):
            raise TypeError(f"{type(runner).__name__} answers no questions")
        return runner.answer(question, context, **settings)
