"""Random calls of `generate` that a program can take: prompts, padding, generation configs, limits, drafts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from qeff_framework.coverage import sizes as tiny_sizes
from qeff_framework.coverage.fuzz.examples import Form, Place, Request

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

_FORMS: Final[tuple[Form, ...]] = ("lists", "left padded", "right padded", "left padded without mask")
_PLACES: Final[tuple[Place, ...]] = ("keywords", "generation config", "checkpoint")
#: Ids of prompts: no special token has them, and every tiny vocabulary does.
_FIRST, _LAST = tiny_sizes.FIRST_PLAIN_TOKEN, 127
_MOST_SETTINGS: Final = 3
#: Without an end of sequence they do nothing, or are refused.
_NEED_END: Final = ("min_new_tokens", "min_length", "exponential_decay_length_penalty")


def requests(sizes: Mapping[str, Any], *, likely: Sequence[int], vocab_size: int) -> SearchStrategy[Request]:
    """Requests for a program of these sizes. The simplest one is a prompt of one token that gets one new token.

    `likely` holds tokens that the model generates, so that settings which name tokens have an effect.
    """
    return _requests(sizes, _tokens(likely, vocab_size))


def _tokens(likely: Sequence[int], vocab_size: int) -> SearchStrategy[int]:
    return st.sampled_from(likely) | st.integers(0, vocab_size - 1)


@st.composite
def _requests(draw: DrawFn, sizes: Mapping[str, Any], tokens: SearchStrategy[int]) -> Request:
    ctx_len: int = sizes["ctx_len"]
    encoder = _longest_source(sizes)
    longest = encoder or min(ctx_len - 1, max(sizes.get("comp_ctx_lengths_prefill", [ctx_len])))
    rows = sizes.get("full_batch_size")
    count = draw(st.integers(1, sizes["batch_size"] if rows is None else 2 * rows + 1))
    prompts = [draw(_prompts(longest)) for _ in range(count)]
    place = draw(st.sampled_from(_PLACES))
    settings = draw(_settings(_known_settings(tokens, ctx_len, place=place, sampler="include_sampler" in sizes)))
    start = 1 if encoder else max(map(len, prompts))
    settings |= draw(_limits(start, ctx_len))
    form = draw(st.sampled_from(_FORMS))
    pad = draw(st.integers(0, tiny_sizes.FIRST_PLAIN_TOKEN - 1))
    if form == "left padded without mask":
        # Transformers takes the padding id for padding only if it ends no sequence.
        settings["pad_token_id"] = pad
        if pad in _ids(settings.get("eos_token_id")):
            form = "left padded"
    return Request(
        prompts=prompts,
        form=form,
        pad=pad,
        settings=settings,
        place=place,
        stop_tokens=draw(st.just([]) | st.lists(tokens, max_size=3, unique=True)),
        lookup=draw(_lookup(sizes)),
        scores=not sizes.get("include_sampler") and draw(st.booleans()),
    )


def _longest_source(sizes: Mapping[str, Any]) -> int:
    """Tokens that the encoder reads at most; 0 without an encoder."""
    lengths = sizes.get("encoder_seq_len", 0)
    return int(max(lengths)) if isinstance(lengths, Sequence) else int(lengths)


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


@st.composite
def _prompts(draw: DrawFn, longest: int) -> list[int]:
    """Short prompts, long ones, and ones that repeat themselves, which drafts and penalties act on."""
    ids = st.integers(_FIRST, _LAST)
    kind = draw(st.sampled_from(["short", "long", "repeated"]))
    if kind == "long" and longest > 1:
        return draw(st.lists(ids, min_size=math.ceil(longest / 2), max_size=longest))
    prompt = draw(st.lists(ids, min_size=1, max_size=min(6, longest)))
    times = draw(st.integers(1, longest // len(prompt))) if kind == "repeated" else 1
    return prompt * times


@st.composite
def _limits(draw: DrawFn, start: int, ctx_len: int) -> dict[str, int]:
    room = ctx_len - start
    kind = draw(st.sampled_from(["max_new_tokens", "max_length", "context"]))
    if kind == "context":
        return {}
    count = draw(st.integers(1, room))
    return {"max_new_tokens": count} if kind == "max_new_tokens" else {"max_length": start + count}


def _known_settings(
    tokens: SearchStrategy[int], ctx_len: int, *, place: Place, sampler: bool
) -> dict[str, SearchStrategy[Any]]:
    """Values of the settings that a request may have there."""
    some = st.lists(tokens, min_size=1, max_size=4, unique=True)
    ends = {"eos_token_id": tokens | some, "repetition_penalty": st.sampled_from([1.2, 2.0, 0.5])}
    # Without sampling they do nothing, and as keywords they are refused.
    idle = {} if place == "keywords" else {"temperature": st.just(0.5), "top_k": st.just(3)}
    if sampler:
        # On the device there is no other penalty.
        return ends | idle
    sequences = st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=3)
    biases = st.tuples(st.lists(tokens, min_size=1, max_size=2), st.sampled_from([-10.0, -1.0, 1.0, 10.0]))
    return {
        **ends,
        "suppress_tokens": some,
        "begin_suppress_tokens": some,
        "bad_words_ids": sequences,
        "sequence_bias": st.lists(biases.map(list), min_size=1, max_size=3),
        "min_new_tokens": st.integers(1, 8),
        "min_length": st.integers(1, ctx_len),
        "no_repeat_ngram_size": st.integers(1, 3),
        "encoder_repetition_penalty": st.sampled_from([1.2, 2.0, 0.5]),
        "encoder_no_repeat_ngram_size": st.integers(1, 3),
        "forced_bos_token_id": tokens,
        "forced_eos_token_id": tokens | some,
        "exponential_decay_length_penalty": st.tuples(st.integers(1, 8), st.sampled_from([1.1, 2.0])).map(list),
        "remove_invalid_values": st.just(value=True),
        "renormalize_logits": st.just(value=True),
        **idle,
    }


@st.composite
def _settings(draw: DrawFn, known: Mapping[str, SearchStrategy[Any]]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(list(known)), unique=True, max_size=_MOST_SETTINGS))
    settings = {name: draw(known[name]) for name in names}
    if set(_NEED_END) & set(settings):
        settings.setdefault("eos_token_id", draw(known["eos_token_id"]))
    return settings


@st.composite
def _lookup(draw: DrawFn, sizes: Mapping[str, Any]) -> dict[str, int]:
    drafts = _ids(sizes.get("num_speculative_tokens"))
    if not drafts or not draw(st.booleans()):
        return {}
    return {
        "prompt_lookup_num_tokens": draw(st.integers(1, max(drafts))),
        "max_matching_ngram_size": draw(st.integers(1, 3)),
    }
