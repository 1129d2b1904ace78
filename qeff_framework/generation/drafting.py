"""Which draft tokens a decode step checks: prompt lookup for the rows of one generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qeff_framework.errors import InputError
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.prompt_lookup import PromptLookup
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """Prompt lookup of one generation."""

    #: One for each row.
    lookups: Sequence[PromptLookup]
    #: Draft tokens per step at most.
    count: int

    def draft(self, row: Row, shape: ProgramShape) -> list[int]:
        """What may follow in a row. A draft behind the row's last possible token would be checked for nothing.

        No draft goes beyond a length at which the text is read anew: it would be checked against a cache that does not fit.
        """
        ends = [length - 1 for length in shape.reread_lengths if length > row.position + 1]
        behind = min([len(row.prompt) + row.limit - 1, *ends])
        return self.lookups[row.index].draft(min(self.count, behind - row.position - 1))


def drafting_of(rows: Sequence[Row], settings: GenerationSettings, shape: ProgramShape) -> Drafting | None:
    """Raises `InputError` when the program cannot check as many drafts as are asked for."""
    count, most = settings.prompt_lookup_num_tokens, shape.decodes[-1].width - 1
    if count is None:
        return None
    if count > most:
        can = f"checks at most {most} draft tokens per step" if most else "returns the logits of one token per step"
        raise InputError(
            f"prompt_lookup_num_tokens={count}: the program {can}; compile with num_speculative_tokens={count}"
            f"{f', or ask for at most {most}' if most else ''}"
        )
    ngram = settings.max_matching_ngram_size
    return Drafting(lookups=[PromptLookup(row.prompt, max_ngram=ngram) for row in rows], count=count)
