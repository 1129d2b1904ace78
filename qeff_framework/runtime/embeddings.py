"""Embeddings with loaded programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError
from qeff_framework.options import check_switches
from qeff_framework.runtime.runner import CompiledRunner, tokenizer_output

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class CompiledEncoder(CompiledRunner):
    """Embeddings with a loaded program."""

    def generate(
        self,
        inputs: str | Sequence[str] | Mapping[str, Any] | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        prepared: bool = False,
        **tensors: Any,
    ) -> Array:
        """Embeds texts, or tokenizer output.

        Texts are prepared as the checkpoint says: a sentence-transformers checkpoint may put a prompt in front, lower-case
        them, and cut long ones. Tokens are embedded as they are, and refused where the checkpoint changes or cuts texts before.

        Args:
            inputs: texts, one or several; or ``input_ids [N, S]`` and ``attention_mask [N, S]``, any number of rows, padded on
                any side. Without a mask every id is text, as in Transformers.
            prompt: text in front of every text, "" for none; by default the checkpoint's.
            prompt_name: instead of it, the name of one of the checkpoint's prompts.
            prepared: the tokens are those of texts that were prepared already, and are taken as they are.
            **tensors: tokens as keywords (``generate(**tokenizer(texts))``).

        Returns:
            float32 ``[N, hidden]`` with pooling in the graph, else ``[N, S, hidden]``.

        Raises:
            InputError: no inputs, longer ones than were compiled for, tokens of texts that the checkpoint would have changed,
                an unknown prompt, or texts for an artifact without a tokenizer.
        """
        from qeff_framework.single_pass import check_tokens, tokenise_texts
        from qeff_framework.tokenization.inputs import as_text_list

        check_switches("generate", prepared=prepared)
        preparation: Mapping[str, Any] = self.compiled.metadata.get("texts") or {}
        texts = [inputs] if isinstance(inputs, str) else as_text_list(inputs)
        if isinstance(texts, Sequence) and texts and any(isinstance(text, str) for text in texts):
            if self.tokenizer is None:
                raise InputError(
                    f"{self.compiled.directory} carries no tokenizer, so that texts cannot be read; save one in the model's "
                    "folder and compile again, or give tokens"
                )
            if tensors:
                raise InputError(
                    f"{', '.join(sorted(tensors))} cannot be given beside texts; give texts, with prompt= or prompt_name=, "
                    "or tokens"
                )
            return self._encoder(
                tokenise_texts(texts, self.tokenizer, preparation, prompt=prompt, prompt_name=prompt_name)
            )
        if isinstance(texts, list | tuple) and not texts and not tensors:
            raise InputError("no texts were given; give at least one")
        if prompt is not None or prompt_name is not None:
            raise InputError("prompt and prompt_name are for texts: tokens are taken as they are")
        given: Any = inputs
        tokens = tokenizer_output(given, tensors)
        if not prepared:
            check_tokens(tokens, preparation)
        return self._encoder(tokens)
