"""Text from text with encoder-decoder language models: translation, summaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qeff_framework.auto.given_prompts import require_beams, require_new_tokens
from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.errors import InputError
from qeff_framework.model import GivenInput
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

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Adds more beams than rows and, when a program must be made, texts that are too long for it."""
        super().require_input(given, sizes)
        shapes = self._sizes_among(sizes)
        require_beams(given.settings, shapes, self._checkpoint_beams())
        require_new_tokens(given.settings, shapes.ctx_len)

    def _require_room(self, given: GivenInput, shapes: Seq2SeqLMShapes) -> None:
        for index, ids in enumerate(self._prompt_ids(given)):
            if len(ids) > shapes.lengths[-1]:
                raise InputError(
                    f"prompt {index} has {len(ids)} tokens, and the encoder would read {shapes.lengths[-1]} at most; shorten it, "
                    f"or give encoder_seq_len={len(ids)} (-O encoder_seq_len={len(ids)})"
                )
