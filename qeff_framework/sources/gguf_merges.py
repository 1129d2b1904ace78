"""The merges that a vocabulary implies, as Transformers finds them, in a fraction of its memory and time.

A GGUF file of a sentencepiece vocabulary, such as Gemma's, lists no merges. Transformers cuts each token into two that exist, and
keeps every pair as new texts: of 262 thousand tokens more memory than the rest of an export takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeff_framework.sources.stand_ins import StandIn

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int32]
Places = NDArray[np.int64]


@contextmanager
def lean_merges() -> Iterator[None]:
    """While the body runs, Transformers' reader of GGUF vocabularies finds merges with `merges_of` in this thread."""
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as library
    except ImportError:  # A release with another reader, which has loops of its own.
        yield
        return
    token = _asked.set(True)
    try:
        with ExitStack() as stack:
            if hasattr(library, "generate_merges"):
                stack.enter_context(_MERGES.installed(library))
            yield
    finally:
        _asked.reset(token)


_asked: ContextVar[bool] = ContextVar("asked", default=False)


def merges_of(vocab: Mapping[str, int], vocab_scores: Mapping[str, float]) -> list[tuple[str, str]] | None:
    """What ``transformers.tokenization_utils_base.generate_merges`` returns, in its order.

    Pairs are numbers until they are sorted, and then texts of the vocabulary itself. `None` where there is
    nothing to cut, or two tokens have one hash.
    """
    if not vocab or not vocab_scores:
        return None
    names = list(vocab)
    pieces = _Pieces(names)
    wholes = list(vocab_scores)
    found = [pieces.cuts(wholes[start : start + _TOKENS], start) for start in range(0, len(wholes), _TOKENS)]
    if not pieces.are_distinct:
        return None
    whole, left, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ids = np.fromiter(vocab.values(), np.int64, len(vocab))
    scores = np.asarray(list(vocab_scores.values()))[whole]
    # The last key decides first; what is alike in the library's keys, the last three, stays in the order of tokens and pieces.
    order = np.lexsort([ids[right], ids[left], whole, -pieces.sizes[right], -pieces.sizes[left], -scores])
    # Read number by number: lists of half a million numbers would take the memory that is saved here.
    pairs = zip(left[order].data, right[order].data, strict=True)
    return [(names[one], names[other]) for one, other in pairs]


#: Tokens that are cut at a time.
_TOKENS = 1 << 14
#: Any odd number with many digits: the hash of a text is a polynomial of its characters at this place, modulo 2 to the 64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


class _Text:
    """Texts, one behind the other, of any part of which the hash is known."""

    def __init__(self, texts: list[str]) -> None:
        self.sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        self.ends = np.cumsum(self.sizes)
        self.starts = self.ends - self.sizes
        self.letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        self._sums = np.zeros(len(self.letters) + 1, np.uint64)
        np.cumsum((self.letters.astype(np.uint64) + 1) * _powers(_BASE, len(self.letters)), out=self._sums[1:])
        self._inverses = _powers(_INVERSE, len(self._sums))

    def hashes(self, starts: Places, ends: Places) -> Hashes:
        """Of the parts from each start to its end."""
        return (self._sums[ends] - self._sums[starts]) * self._inverses[starts]


class _Pieces(_Text):
    """The tokens of a vocabulary, found by hashes of parts of a text."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        known = self.hashes(self.starts, self.ends)
        self._order = np.argsort(known).astype(np.int32)
        self._known = known[self._order]
        self.are_distinct = not bool(np.any(self._known[1:] == self._known[:-1]))
        # Nobody asks for other parts of them.
        del self._sums, self._inverses

    def cuts(self, wholes: list[str], first: int) -> tuple[Numbers, Numbers, Numbers]:
        """Every cut of the texts into two tokens: the number of the text, counted from `first`, and the two tokens."""
        text = _Text(wholes)
        owner: Numbers = np.repeat(np.arange(len(wholes), dtype=np.int32), text.sizes)
        places: Places = np.arange(len(owner), dtype=np.int64)
        inside = np.nonzero(places > text.starts[owner])[0]
        right = self._find(text, places[inside], text.ends[owner[inside]])
        inside, right = inside[right >= 0], right[right >= 0]
        left = self._find(text, text.starts[owner[inside]], places[inside])
        known = left >= 0
        whole: Numbers = owner[inside[known]] + np.int32(first)
        return whole, left[known], right[known]

    def _find(self, text: _Text, starts: Places, ends: Places) -> Numbers:
        """The number of the token that each part of `text` is; -1 where it is none."""
        result: Numbers = np.full(len(starts), -1, np.int32)
        hashes = text.hashes(starts, ends)
        at = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        [places] = np.nonzero(self._known[at] == hashes)
        found = self._order[at[places]]
        # Some part may have the hash of a token by chance.
        alike = ends[places] - starts[places] == self.sizes[found]
        places, found = places[alike], found[alike]
        if len(places):
            sizes = self.sizes[found]
            begins = np.cumsum(sizes) - sizes
            steps = np.arange(int(sizes.sum())) - np.repeat(begins, sizes)
            given = text.letters[np.repeat(starts[places], sizes) + steps]
            differs = given != self.letters[np.repeat(self.starts[found], sizes) + steps]
            alike = ~np.logical_or.reduceat(differs, begins)
            result[places[alike]] = found[alike]
        return result


def _powers(base: int, count: int) -> Hashes:
    result = np.full(count, base, np.uint64)
    result[:1] = 1
    return np.cumprod(result, dtype=np.uint64)


#: Arguments of the library's function that are known here: the vocabulary and its scores.
_KNOWN = 2


def _generate_merges(original: Any, *args: Any, **kwargs: Any) -> Any:
    found = merges_of(*args) if _asked.get() and len(args) == _KNOWN and not kwargs else None
    return original(*args, **kwargs) if found is None else found


_MERGES = StandIn("generate_merges", _generate_merges)
