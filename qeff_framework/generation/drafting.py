"""Which draft tokens a decode step checks: prompt lookup, or a draft model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.generation.draft_model import DraftModel
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.prompt_lookup import PromptLookup
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from qeff_framework.generation.request import Request


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """The drafts of one request: from `lookups`, one for each row, or from `model`, which several requests may share."""

    lookups: Sequence[PromptLookup] = field(default_factory=list)
    model: DraftModel | None = None
    #: Draft tokens per step at most.
    count: int

    def most(self, row: Row, shape: ProgramShape) -> int:
        """Draft tokens that the row's next step can check.

        A draft behind the row's last possible token would be checked for nothing. No draft goes beyond a length at which the text
        is read anew: it would be checked against a cache that does not fit.
        """
        return min(self.count, self._behind(row, shape) - row.position - 1)

    def append(self, row: Row, token: int) -> None:
        """A row has got its next token."""
        if self.lookups:
            self.lookups[row.index].append(token)

    def _behind(self, row: Row, shape: ProgramShape) -> int:
        ends = [length - 1 for length in shape.reread_lengths if length > row.position + 1]
        return min([len(row.prompt) + row.limit - 1, *ends])


def drafts_of(groups: Iterable[tuple[Request, Sequence[Row]]], shape: ProgramShape) -> dict[int, list[int]]:
    """What may follow in each row of requests with drafts, by its lane. A draft model runs for the rows of all its requests."""
    drafts: dict[int, list[int]] = {}
    asked: dict[DraftModel, list[tuple[Row, int]]] = {}
    drafting = [(request, rows, request.drafting) for request, rows in groups if request.drafting is not None]
    for _, rows, of_request in drafting:
        counts = [(row, of_request.most(row, shape)) for row in rows]
        if of_request.model is not None:
            asked.setdefault(of_request.model, []).extend(counts)
        else:
            drafts |= {row.lane: of_request.lookups[row.index].draft(count) for row, count in counts}
    for model, counts in asked.items():
        drafts |= model.draft(counts)
    for request, rows, _ in drafting:
        request.drafts_proposed += sum(len(drafts[row.lane]) for row in rows)
    return drafts


def draft_model(session: ExecutionSession, shape: ProgramShape) -> DraftModel:
    """The draft model over a session. Raises `InputError` when the program of `shape` cannot check what it proposes."""
    if not _most_drafts(shape):
        raise InputError(
            "a draft model was given, and the program returns the logits of one token per step; compile it with "
            "num_speculative_tokens=4 or another number of draft tokens"
        )
    return DraftModel(session, shape)


def check_lookup(count: int, shape: ProgramShape) -> None:
    """Raises `InputError` when the program cannot check `count` tokens that prompt lookup proposes."""
    most = _most_drafts(shape)
    if count > most:
        can = f"checks at most {most} draft tokens per step" if most else "returns the logits of one token per step"
        raise InputError(
            f"prompt_lookup_num_tokens={count}: the program {can}; compile with num_speculative_tokens={count}"
            f"{f', or ask for at most {most}' if most else ''}"
        )


def _most_drafts(shape: ProgramShape) -> int:
    return shape.decodes[-1].width - 1


def drafting_of(
    rows: Sequence[Row],
    settings: GenerationSettings,
    shape: ProgramShape,
    draft: ExecutionSession | DraftModel | None = None,
) -> Drafting | None:
    """`draft` is the session of a draft model, or one that requests share.

    Raises `InputError` when the program cannot check what is asked for.
    """
    count = settings.prompt_lookup_num_tokens
    if draft is not None:
        if count is not None:
            raise InputError("prompt_lookup_num_tokens and a draft model both propose tokens; give one of the two")
        model = draft if isinstance(draft, DraftModel) else draft_model(draft, shape)
        return Drafting(model=model, count=_most_drafts(shape))
    if count is None:
        return None
    check_lookup(count, shape)
    ngram = settings.max_matching_ngram_size
    return Drafting(lookups=[PromptLookup(row.prompt, max_ngram=ngram) for row in rows], count=count)
