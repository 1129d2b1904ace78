"""The comparison itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qeff_framework.compare.figures import Figures, LayerError
from qeff_framework.compare.passages import Passage
from qeff_framework.compare.program import ForcedReading
from qeff_framework.compare.reference import Reference


@dataclass(kw_only=True)
class Comparison:
    """What was found."""

    #: Over the tokens of the reference's own continuations.
    prompts: Figures = field(default_factory=Figures)
    #: Over the tokens of the text.
    text: Figures = field(default_factory=Figures)
    #: By prompt: tokens before the first that the program would not have chosen. Greedy texts are equal up to there.
    common: list[int] = field(default_factory=list)
    #: In order; empty where they cannot be read.
    layers: list[LayerError] = field(default_factory=list)

    @property
    def mean_kl(self) -> float:
        """Over the tokens of prompts and text."""
        found = [*self.prompts.divergences, *self.text.divergences]
        return sum(found) / len(found) if found else 0.0


def compare(
    reading: ForcedReading,
    reference: Reference,
    passages: Sequence[Passage],
    *,
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Lets both read each passage.

    Args:
        reading: the program.
        reference: Transformers.
        passages: what is read; none longer than the program's context.
        tell: gets a line for each passage.
    """
    result = Comparison()
    layers: dict[int, LayerError] = {}
    for number, passage in enumerate(passages):
        tell(f"passage {number + 1} of {len(passages)}: {len(passage.tokens)} tokens")
        expected, stored = reference.read(passage.tokens)
        found = reading.read(passage.tokens)
        first = passage.scored - 1
        figures = result.prompts if passage.kind == "prompt" else result.text
        same = figures.add(expected[first:-1], found[first:-1], passage.tokens[first + 1 :])
        if passage.kind == "prompt":
            result.common.append(len(same) if same.all() else int(same.argmin()))
        for layer, states in reading.stored(len(passage.tokens)).items():
            for what, numbers in zip(("keys", "values"), stored.get(layer, ()), strict=False):
                if what in states and states[what].shape == numbers.shape:
                    layers.setdefault(layer, LayerError(layer=layer)).add(what, numbers, states[what])
    result.layers = [layers[layer] for layer in sorted(layers)]
    return result
