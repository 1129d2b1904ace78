"""Text generation with decoder-only language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qeff_framework.auto.given_prompts import require_beams, require_lookup, require_room
from qeff_framework.auto.task_model import TaskModel
from qeff_framework.contracts import Task
from qeff_framework.model import GivenInput
from qeff_framework.shapes import CausalLMShapes


class QEFFAutoModelForCausalLM(TaskModel):
    """A causal language model.

    ``compile`` takes ``prefill_seq_len=32, ctx_len=128, batch_size=1`` beside the backend's options; in a shorter
    context the default prefill is as short. ``generate``
    takes a tokenizer and prompts, or tokenizer output; see `qeff_framework.runtime.CompiledCausalLM.generate`.

    Example::

        model = QEFFAutoModelForCausalLM.from_pretrained("gpt2")
        model.compile(backend="ort_sim", prefill_seq_len=32, ctx_len=128)
        print(model.generate(prompts=["My name is"]).generated_texts)
    """

    task: ClassVar[Task] = "causal-lm"
    transformers_class = "AutoModelForCausalLM"
    shapes = CausalLMShapes
    cut_programs = frozenset({""})
    has_one_program = True

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Adds more beams than rows, drafts that are not checked and, when a program must be made, prompts too long for it."""
        super().require_input(given, sizes)
        shapes = self._sizes_among(sizes)
        require_beams(given.settings, shapes, self._checkpoint_beams())
        require_lookup(given.settings, shapes)

    def _require_room(self, given: GivenInput, shapes: CausalLMShapes) -> None:
        for index, ids in enumerate(self._prompt_ids(given)):
            require_room(index, len(ids), given.settings, shapes.ctx_len)
