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
    order = np.argsort(_places(whole, pieces.sizes[left], pieces.sizes[right], list(vocab_scores.values())))
    texts = np.array(names, object)
    return list(zip(texts[left[order]].tolist(), texts[right[order]].tolist(), strict=True))


def _places(whole: Numbers, left: Places, right: Places, scores: list[float]) -> Places:
    """A number for each cut, of which none are alike, that rises in the library's order.

    That is by falling score of the whole, then falling size of the left piece, then of the right one; what is alike in these
    stays in the order of tokens. Two cuts of one token differ in the size of the left piece.
    """
    falling = -np.asarray(scores)
    rank = np.unique(falling, return_inverse=True)[1]
    keys = [rank[whole], left.max(initial=0) - left, right.max(initial=0) - right, whole]
    result = np.zeros(len(whole), np.int64)
    for key in keys:
        bits = int(key.max(initial=0)).bit_length()
        if int(result.max(initial=0)).bit_length() + bits > _BITS:
            # What is alike so far, by numbers without gaps.
            result = np.unique(result, return_inverse=True)[1]
        result = (result << bits) + key
    return result


#: Tokens that are cut at a time.
_TOKENS = 1 << 14
#: Bits of a hash beyond those that number the tokens, so that most beginnings belong to no token.
_SPARE_BITS = 2
#: Of a number that has a sign.
_BITS = 63
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
        # Times a number with many digits, since the hash of one letter would be that letter: their first bits tell them apart.
        return (self._sums[ends] - self._sums[starts]) * self._inverses[starts] * np.uint64(_BASE)


class _Pieces(_Text):
    """The tokens of a vocabulary, found by hashes of parts of a text."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        known = self.hashes(self.starts, self.ends)
        self._order = np.argsort(known).astype(np.int32)
        self._known = known[self._order]
        # Tokens whose hashes begin with the same bits stand together: where those begin, and how many they are at most.
        self._shift = np.uint64(64 - len(names).bit_length() - _SPARE_BITS)
        counts = np.bincount((self._known >> self._shift).astype(np.int64), minlength=1 << (64 - int(self._shift)))
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self._most = int(counts.max())
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
        begins = (hashes >> self._shift).astype(np.int64)
        at, ends_at = self._first[begins], self._first[begins + 1]
        parts, tokens = [], []
        places = np.arange(len(hashes))
        for _ in range(self._most):
            # Most parts of a text are no token, and no token's hash begins as theirs does.
            places = places[at[places] < ends_at[places]]
            known = self._known[at[places]] == hashes[places]
            parts.append(places[known])
            tokens.append(self._order[at[places[known]]])
            places = places[~known]
            at[places] += 1
        places, found = np.concatenate(parts), np.concatenate(tokens)
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
