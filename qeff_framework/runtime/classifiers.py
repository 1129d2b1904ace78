"""Class scores of texts and of tokens with loaded programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.runtime.runner import CompiledRunner, carried_config, tokenizer_output

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class CompiledClassifier(CompiledRunner):
    """Class scores with a loaded program."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the columns of the logits stand for, as the checkpoint's config names them, else ``LABEL_0``, ...

        Columns of one name have their number behind it.
        """
        stated = carried_config(self.compiled.directory).get("id2label") or {}
        count = int(self.compiled.outputs[0].shape[-1])
        names = [str(stated.get(str(index), f"LABEL_{index}")) for index in range(count)]
        times = Counter(names)
        return tuple(name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))

    @property
    def problem_type(self) -> str | None:
        """``"regression"``, ``"single_label_classification"``, ``"multi_label_classification"``, or `None`: not stated."""
        stated = carried_config(self.compiled.directory).get("problem_type")
        return None if stated is None else str(stated)

    @property
    def score_activation(self) -> str | None:
        """What a CrossEncoder of sentence-transformers does with the logits (``"Identity"``, ``"Sigmoid"``), if it says so."""
        stated = self.compiled.metadata.get("score_activation")
        return None if stated is None else str(stated)

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> Array:
        """Classifies tokenizer output.

        Args:
            inputs: ``input_ids [N, S]`` and ``attention_mask [N, S]``; any number of rows.
            **tensors: the same as keywords (``generate(**tokenizer(texts))``).

        Returns:
            Logits, float32 ``[N, labels]``.

        Raises:
            InputError: no inputs, or longer ones than were compiled for.
        """
        return self._encoder(tokenizer_output(inputs, tensors))


class CompiledTokenClassifier(CompiledClassifier):
    """Class scores of each token: ``generate`` returns logits ``[N, S, labels]``; those of padding mean nothing."""
