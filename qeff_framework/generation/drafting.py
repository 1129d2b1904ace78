"""Which draft tokens a decode step checks: prompt lookup, or a draft model, for the rows of one generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.generation.draft_model import DraftModel
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.prompt_lookup import PromptLookup
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """The drafts of one generation: from `lookups`, one for each row, or from `model`."""

    lookups: Sequence[PromptLookup] = field(default_factory=list)
    model: DraftModel | None = None
    #: Draft tokens per step at most.
    count: int

    def drafts(self, rows: Sequence[Row], shape: ProgramShape) -> dict[int, list[int]]:
        """What may follow in each row, by its lane.

        A draft behind the row's last possible token would be checked for nothing. No draft goes beyond a length at which the text
        is read anew: it would be checked against a cache that does not fit.
        """
        counts = [(row, min(self.count, self._behind(row, shape) - row.position - 1)) for row in rows]
        if self.model is not None:
            return self.model.draft(counts)
        return {row.lane: self.lookups[row.index].draft(count) for row, count in counts}

    def append(self, row: Row, token: int) -> None:
        """A row has got its next token."""
        if self.lookups:
            self.lookups[row.index].append(token)

    def _behind(self, row: Row, shape: ProgramShape) -> int:
        ends = [length - 1 for length in shape.reread_lengths if length > row.position + 1]
        return min([len(row.prompt) + row.limit - 1, *ends])


def drafting_of(
    rows: Sequence[Row], settings: GenerationSettings, shape: ProgramShape, draft: ExecutionSession | None = None
) -> Drafting | None:
    """`draft` is the session of a draft model. Raises `InputError` when the program cannot check what is asked for."""
    count, most = settings.prompt_lookup_num_tokens, shape.decodes[-1].width - 1
    if draft is not None:
        if count is not None:
            raise InputError("prompt_lookup_num_tokens and a draft model both propose tokens; give one of the two")
        if not most:
            raise InputError(
                "a draft model was given, and the program returns the logits of one token per step; compile it with "
                "num_speculative_tokens=4 or another number of draft tokens"
            )
        return Drafting(model=DraftModel(draft, shape), count=most)
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
