"""Rules that only sampling uses: how flat the distribution is, and how far down it a sample may lie.

What they remove gets the score -inf. Each of them leaves at least one token, as in Transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores.normalizing import log_softmax, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.generation.scores.rule import Scores

#: Tokens that `TopP` sorts when they are enough.
_SORTED_AT_ONCE = 1024
#: Tokens that `TopH` looks at, as in Transformers.
_TOP_H_CANDIDATES = 100


class Temperature:
    """Divides all scores by `temperature`."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        np.divide(scores, self._temperature, out=scores)


class TopK:
    """Keeps the `count` highest scores, and those that equal the last of them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        if self._count < len(scores):
            scores[scores < np.partition(scores, -self._count)[-self._count]] = -np.inf


class TopP:
    """Keeps the most likely tokens that together have the probability `mass`."""

    def __init__(self, mass: float) -> None:
        self._mass = mass

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        probabilities = softmax(scores)
        likely, below = self._likely(probabilities)
        rising = likely[np.argsort(probabilities[likely])]
        kept = _cumulated(probabilities[rising], start=below) > 1 - self._mass
        kept[-1:] = True
        _keep_only(rising[kept], scores)

    def _likely(self, probabilities: Scores) -> tuple[NDArray[np.int64], float]:
        """Tokens among which all kept ones are, and the probability of the others together.

        Sorting a whole vocabulary takes longer than all other rules together, and mostly few tokens make up the mass.
        """
        possible = np.flatnonzero(probabilities)
        if len(possible) > _SORTED_AT_ONCE:
            likely = np.argpartition(probabilities, -_SORTED_AT_ONCE)[-_SORTED_AT_ONCE:]
            below = float(1 - probabilities[likely].sum(dtype=np.float64))
            if below < 1 - self._mass:
                return likely, below
        return possible, 0.0


class MinP:
    """Keeps tokens with at least the share `share` of the greatest probability."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        probabilities = softmax(scores)
        best = int(probabilities.argmax())
        removed = probabilities < np.float32(self._share) * probabilities[best]
        removed[best] = False
        scores[removed] = -np.inf


class TopH:
    """Keeps the most likely tokens whose part of the entropy is at most the share `share` of it."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        falling = _sorted_candidates(scores)[::-1][:_TOP_H_CANDIDATES]
        probabilities = softmax(scores[falling])
        terms = -probabilities * np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
        kept = (_cumulated(terms) <= np.float32(terms.sum() * self._share)) & (probabilities > 0)
        kept[:1] = True
        _keep_only(falling[kept], scores)


class TypicalMass:
    """Keeps the tokens whose information is closest to the entropy and that together have the probability `mass`."""

    def __init__(self, mass: float) -> None:
        self._mass = mass

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        candidates = _sorted_candidates(scores)
        information = -log_softmax(scores[candidates])
        probabilities = np.exp(-information)
        distances = np.abs(information - np.nansum(information * probabilities))
        order = np.argsort(distances)
        last = min(int((_cumulated(probabilities[order]) < self._mass).sum()), len(order) - 1)
        removed = distances > distances[order[last]]
        removed[order[0]] = False
        scores[candidates[removed]] = -np.inf


class EpsilonCutoff:
    """Keeps tokens with a probability of at least `epsilon`, and the most likely one."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = np.float32(epsilon)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        scores[(softmax(scores) < self._epsilon) & (scores < scores.max())] = -np.inf


class EtaCutoff:
    """`EpsilonCutoff` with a bound that falls as the entropy rises."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = np.float32(epsilon)

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        del row
        probabilities = softmax(scores)
        likely = probabilities[probabilities > 0]
        entropy = -(likely * np.log(likely)).sum()
        bound = min(self._epsilon, np.sqrt(self._epsilon) * np.exp(-entropy))
        scores[(probabilities < bound) & (scores < scores.max())] = -np.inf


def _sorted_candidates(scores: Scores) -> NDArray[np.int64]:
    """The tokens that no rule has removed, by rising score; one of the removed ones where there is no other."""
    candidates = np.flatnonzero(scores > -np.inf)
    if not candidates.size:
        return np.zeros(1, dtype=np.int64)
    return np.asarray(candidates[np.argsort(scores[candidates])])


def _cumulated(values: Scores, *, start: float = 0.0) -> Scores:
    """Running sums, added up in double precision as torch does."""
    return (np.cumsum(values, dtype=np.float64) + start).astype(np.float32)


def _keep_only(tokens: NDArray[np.int64], scores: Scores) -> None:
    kept = scores[tokens]
    scores.fill(-np.inf)
    scores[tokens] = kept
