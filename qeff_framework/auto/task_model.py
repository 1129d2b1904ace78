"""What the classes of all tasks share beside `QEFFBaseModel`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qeff_framework.auto.dispatch import check_task
from qeff_framework.auto.given_prompts import beams_problem
from qeff_framework.model import GivenInput, QEFFBaseModel
from qeff_framework.sources import CheckpointSource, ModelSource, ModuleSource


class TaskModel(QEFFBaseModel):
    """A class for one task. A checkpoint that was saved with the head of another one is refused before its weights are read."""

    @classmethod
    def _check_architecture(cls, source: ModelSource) -> None:
        check_task(source, cls.task)

    def _checkpoint_beams(self) -> int:
        """Beams that the checkpoint's generation config asks for, which hold where a caller of ``generate`` names none."""
        beams = None
        if isinstance(self._source, ModuleSource):
            beams = getattr(getattr(self._loaded_module(), "generation_config", None), "num_beams", None)
        elif isinstance(self._source, CheckpointSource):
            # As Transformers does, in old checkpoints the model's own config stands for the file that is not there.
            beams = (self._source.generation_config() or self.config).get("num_beams")
        return beams if isinstance(beams, int) else 1

    def _advice(self, shapes: Any) -> str:
        """Beams that the checkpoint asks for and the programs have no rows for."""
        if not hasattr(shapes, "ctx_len") or getattr(shapes, "skip_lang", False):
            return ""
        beams = self._checkpoint_beams()
        problem = beams_problem(beams, shapes) if beams > 1 else ""
        return problem and (
            f"generate would refuse the checkpoint's num_beams={beams}: {problem}, or call generate with num_beams=1, which "
            "takes the most likely token at each step"
        )

    def _prompt_ids(self, given: GivenInput) -> Iterator[list[int]]:
        """Token ids of the given texts and conversations."""
        from qeff_framework.tokenization import ChatOptions
        from qeff_framework.tokenization.tokenizer import as_text_tokenizer, encode_prompt

        if not given.prompts:
            return
        tokenizer: Any = as_text_tokenizer(self._source.tokenizer())
        chat = ChatOptions(chat_template_kwargs=given.chat_template_kwargs)
        for prompt in given.prompts:
            yield (
                encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else tokenizer.encode_chat(prompt, chat)[1]
            )
