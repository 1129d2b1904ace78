"""What the classes of all tasks share beside `QEFFBaseModel`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qeff_framework.auto.dispatch import check_task
from qeff_framework.model import GivenInput, QEFFBaseModel
from qeff_framework.sources import ModelSource


class TaskModel(QEFFBaseModel):
    """A class for one task. A checkpoint that was saved with the head of another one is refused before its weights are read."""

    @classmethod
    def _check_architecture(cls, source: ModelSource) -> None:
        check_task(source, cls.task)

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
