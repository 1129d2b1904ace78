"""The texts that both read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

#: Openings of different kinds, for continuations by the model itself.
BUILT_IN_PROMPTS: Final = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def largest(numbers):\n    ",
    "Dear Mrs Miller,\nthank you for your letter of",
    "To bake a loaf of bread you need",
    "In the year 1969 the first people",
    "Question: What is seven times eight?\nAnswer:",
    "La biblioteca está cerrada los",
)

#: Plain English prose, for perplexity.
BUILT_IN_TEXT: Final = (
    "A lighthouse stands on a rock at the mouth of the bay. It was built of granite blocks that were cut on the "
    "mainland and carried over by barge in calm weather. Each block has a groove on one side and a ridge on the "
    "other, so that the courses lock together and no wave can move a single stone. The work took eleven years, and "
    "for the first three of them nothing could be seen above high water.\n\n"
    "The lamp burned oil until the beginning of the last century. Two keepers lived in the tower at a time, and a "
    "third was on leave with his family. They cleaned the lenses in the morning, wound the clockwork that turned "
    "them every four hours, and wrote down the wind, the pressure and the ships that passed. Their books are kept "
    "in the library of the town. From them we know that the winter of the great storm brought ice as far south as "
    "the harbour, and that the relief boat could not land for fifty days.\n\n"
    "Today the light is electric and nobody lives there. A computer switches it on when the sky grows dark, and a "
    "boat brings an engineer twice a year to change the batteries and to paint what the salt has eaten. Visitors "
    "may climb the stairs in summer. From the gallery they see the coast for thirty miles, the islands where the "
    "seals rest, and on clear evenings the lights of the next lighthouse, which answers with two short flashes and "
    "a long one."
)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Tokens, of which those from `scored` on are predicted from the ones before them."""

    kind: Literal["prompt", "text"]
    tokens: Sequence[int]
    scored: int


def windows(tokens: Sequence[int], length: int, start: Sequence[int]) -> Iterator[Passage]:
    """A text in passages of at most `length` tokens, each with the tokens `start` in front, which are not predicted."""
    step = length - len(start)
    for first in range(0, len(tokens), step):
        part = [*start, *tokens[first : first + step]]
        scored = max(1, len(start))
        if len(part) > scored:
            yield Passage(kind="text", tokens=part, scored=scored)
