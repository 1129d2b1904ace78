"""Random sizes of programs: chunks of the prompt, contexts, batches, continuous batching, drafts, a sampler on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from qeff_framework.contracts import Task

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    Sizes = dict[str, Any]


def program_sizes(task: Task) -> SearchStrategy[list[Sizes]]:
    """Keywords of `compile` for one or two programs of one export."""
    return _seq2seq_programs() if task == "seq2seq-lm" else _causal_programs()


def _down_from(most: int, least: int) -> SearchStrategy[int]:
    """A number for which the simplest choice is the greatest one: small programs show less."""
    return st.integers(0, most - least).map(lambda less: most - less)


@st.composite
def _causal_programs(draw: DrawFn) -> list[Sizes]:
    # What one export has inputs for; without any of them in half of the draws.
    kinds = draw(st.just(()) | st.lists(st.sampled_from(["slots", "drafts", "contexts"]), unique=True, max_size=3))
    sampler = "drafts" not in kinds and draw(st.integers(0, 7)) == 7
    return [draw(_causal_program(tuple(kinds), sampler)) for _ in range(draw(st.integers(1, 2)))]


@st.composite
def _causal_program(draw: DrawFn, kinds: tuple[str, ...], sampler: bool) -> Sizes:
    ctx_len = draw(_down_from(40, 8))
    least = 2 if "drafts" in kinds else 1
    sizes: Sizes = {
        "prefill_seq_len": draw(st.integers(min(4, ctx_len), min(12, ctx_len)) | st.integers(least, 3)),
        "ctx_len": ctx_len,
    }
    if "slots" in kinds:
        rows = draw(_down_from(3, 1))
        sizes["full_batch_size"] = rows
        if draw(st.booleans()):
            sizes["kv_cache_batch_size"] = rows + draw(st.integers(0, 2))
    else:
        sizes["batch_size"] = draw(_down_from(4, 1))
    if "drafts" in kinds:
        most = st.integers(1, sizes["prefill_seq_len"] - 1)
        several = st.lists(most, unique=True, min_size=1, max_size=2).map(sorted)
        sizes["num_speculative_tokens"] = draw(most if "contexts" in kinds else most | several)
    if "contexts" in kinds:
        sizes |= draw(_contexts(sizes))
    if sampler:
        sizes["include_sampler"] = True
    return sizes


@st.composite
def _contexts(draw: DrawFn, sizes: Mapping[str, Any]) -> Sizes:
    """Lengths of the cache that steps read; those of prefill and decode programs differ."""
    least, ctx_len = sizes["prefill_seq_len"], sizes["ctx_len"]
    prefill = draw(st.lists(st.integers(least, max(least, ctx_len - 1)), unique=True, min_size=1, max_size=2))
    others = [length for length in range(max(2, least), ctx_len) if length not in prefill]
    decode = draw(st.lists(st.sampled_from(others), unique=True, max_size=2)) if others else []
    return {
        "comp_ctx_lengths_prefill": sorted(prefill),
        "comp_ctx_lengths_decode": sorted([*decode, ctx_len]),
    }


@st.composite
def _seq2seq_programs(draw: DrawFn) -> list[Sizes]:
    return [
        {
            "encoder_seq_len": draw(st.integers(2, 20) | st.lists(st.integers(2, 20), min_size=1, max_size=3)),
            "ctx_len": draw(_down_from(32, 3)),
            "batch_size": draw(_down_from(4, 1)),
        }
        for _ in range(draw(st.integers(1, 2)))
    ]
