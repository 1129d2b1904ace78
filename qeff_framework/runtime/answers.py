"""Answers that stand in a text, with loaded programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError
from qeff_framework.options import check_switches
from qeff_framework.runtime.runner import CompiledRunner, tokenizer_output

if TYPE_CHECKING:
    from qeff_framework.single_pass import Answer, SpanLogits


class CompiledQuestionAnswering(CompiledRunner):
    """Answers that stand in a text, with a loaded program."""

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> SpanLogits:
        """Scores each token of tokenizer output as start and as end of the answer.

        Args:
            inputs: of pairs of question and context: ``input_ids [N, S]``, ``attention_mask [N, S]`` and, where the model reads
                them, ``token_type_ids [N, S]``; any number of rows.
            **tensors: the same as keywords (``generate(**tokenizer(questions, contexts))``).

        Returns:
            ``start_logits`` and ``end_logits``, float32 ``[N, S]``; those of padding mean nothing.

        Raises:
            InputError: no inputs, or longer ones than were compiled for.
        """
        from qeff_framework.single_pass import SpanLogits

        outputs = self._encoder.outputs(tokenizer_output(inputs, tensors))
        return SpanLogits(outputs["start_logits"], outputs["end_logits"])

    def answer(
        self,
        question: str,
        context: str,
        *,
        tokenizer: Any = None,
        max_answer_len: int = 15,
        doc_stride: int = 128,
        handle_impossible_answer: bool = False,
    ) -> Answer:
        """The part of `context` that answers `question` best, by the rules of the question-answering pipeline of Transformers 4.

        Args:
            question: one question.
            context: the text that holds the answer; one that is too long for the program is read in windows.
            tokenizer: a fast tokenizer of Transformers; `None` takes the one that the artifact carries.
            max_answer_len: tokens of an answer at most.
            doc_stride: tokens by which windows overlap, at most half of the program's length.
            handle_impossible_answer: there may be no answer, with an empty text.

        Raises:
            InputError: an empty text, a question that leaves no room for the context, or no tokenizer that fits.
        """
        from qeff_framework.single_pass import find_answer
        from qeff_framework.tokenization import as_text_tokenizer

        check_switches("answer", handle_impossible_answer=handle_impossible_answer)
        chosen = tokenizer if tokenizer is not None else self.tokenizer
        if chosen is None:
            raise InputError(f"{self.no_tokenizer}; or pass tokenizer=...")
        return find_answer(
            self.generate,
            as_text_tokenizer(chosen),
            question,
            context,
            max_tokens=max(item.dims["seq_len"] for item in self.compiled.specializations),
            max_answer_len=max_answer_len,
            doc_stride=doc_stride,
            handle_impossible_answer=handle_impossible_answer,
        )
