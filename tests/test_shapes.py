"""Defaults that follow other sizes: the prefill in a short context, and compute contexts whose lengths are chosen automatically."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qeff_framework.errors import OptionError
from qeff_framework.options import parse_options
from qeff_framework.shapes import CausalLMShapes


def contexts(**sizes: object) -> tuple[list[int], list[int]]:
    """Lengths of the prefill and of the decode programs."""
    entries = CausalLMShapes(ccl_enabled=True, **sizes).specializations()
    prefill = [entry.dims["comp_ctx_lengths"] for entry in entries if entry.name.startswith("prefill")]
    return prefill, [entry.dims["comp_ctx_lengths"] for entry in entries if entry.name.startswith("decode")]


@pytest.mark.parametrize(
    ("ctx_len", "prefill", "decode"),
    [
        (4097, [4064], [4096, 4097]),
        (16_384, [4064, 8160, 16_352], [4096, 8192, 16_384]),
        (32_768, [4064, 8160, 16_352, 32_736], [4096, 8192, 16_384, 32_768]),
        (40_000, [8160, 16_352, 32_736, 39_968], [8192, 16_384, 32_768, 40_000]),
        (131_072, [16_352, 32_736, 65_504, 131_040], [16_384, 32_768, 65_536, 131_072]),
        (1_000_000, [16_352, 32_736, 65_504, 131_040, 999_968], [16_384, 32_768, 65_536, 131_072, 1_000_000]),
    ],
)
def test_lengths_double_and_end_with_the_context(ctx_len, prefill, decode) -> None:
    assert contexts(ctx_len=ctx_len) == (prefill, decode)


@pytest.mark.parametrize(("ctx_len", "prefill"), [(2, 2), (16, 16), (32, 32), (128, 32)])
def test_the_default_prefill_fits_the_context(ctx_len, prefill) -> None:
    sizes = CausalLMShapes(ctx_len=ctx_len)
    assert sizes.prefill_seq_len == prefill
    assert sizes.specializations()[0].dims["seq_len"] == prefill


def test_a_context_without_room_for_a_new_token_is_refused() -> None:
    """Its program could be compiled, and would then refuse every prompt."""
    with pytest.raises(OptionError, match=r"ctx_len.*must be at least 2, got 1"):
        parse_options(CausalLMShapes, {"ctx_len": 1}, owner="compile")


def test_a_prefill_that_was_asked_for_is_not_shortened() -> None:
    with pytest.raises(ValueError, match="prefill_seq_len=32 is greater than ctx_len=16"):
        CausalLMShapes(ctx_len=16, prefill_seq_len=32)


def test_a_short_context_has_none() -> None:
    sizes = CausalLMShapes(ctx_len=4096, ccl_enabled=True)
    assert not sizes.has_compute_contexts
    assert (sizes.extra_inputs(), sizes.specializations()) == ((), CausalLMShapes(ctx_len=4096).specializations())


def test_one_program_for_prefill_and_decode_has_more_of_them() -> None:
    prefill, decode = contexts(ctx_len=1_000_000, prefill_seq_len=1)
    assert prefill == []
    assert decode == [16_384 * 2**power for power in range(6)] + [1_000_000]


def test_given_lengths_win() -> None:
    sizes = {"ctx_len": 8192, "comp_ctx_lengths_prefill": (2048,), "comp_ctx_lengths_decode": (1024,)}
    assert contexts(**sizes) == ([2048], [1024, 8192])


def test_a_prefill_that_no_length_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="ccl_enabled: prefill_seq_len=8190 is more than every prefill length"):
        CausalLMShapes(ctx_len=8192, prefill_seq_len=8190, ccl_enabled=True)
    with pytest.raises(ValueError, match="several num_speculative_tokens cannot be combined"):
        CausalLMShapes(ctx_len=8192, num_speculative_tokens=(1, 2), ccl_enabled=True)


@given(st.integers(4097, 300_000), st.integers(1, 4096), st.none() | st.integers(1, 4))
def test_automatic_lengths_are_lengths_that_could_have_been_given(ctx_len, prefill_seq_len, rows) -> None:
    assume(prefill_seq_len > 1 or rows)
    sizes = {"ctx_len": ctx_len, "prefill_seq_len": prefill_seq_len, "full_batch_size": rows}
    prefill, decode = contexts(**sizes) if prefill_seq_len <= ctx_len - 64 else ([], [])
    if prefill:
        given_ = CausalLMShapes(**sizes, comp_ctx_lengths_prefill=tuple(prefill), comp_ctx_lengths_decode=tuple(decode))
        assert given_.specializations() == CausalLMShapes(**sizes, ccl_enabled=True).specializations()
        assert prefill[-1] >= ctx_len - 64
        assert len(prefill) <= 5
        assert len(decode) <= 5


def test_no_draft_tokens_are_plain_decoding_of_a_target() -> None:
    plain = CausalLMShapes(num_speculative_tokens=0)
    assert plain.specializations() == CausalLMShapes(num_speculative_tokens=(0,)).specializations()
    decode = next(entry.dims for entry in plain.specializations() if entry.dims["seq_len"] == 1)
    assert decode["num_logits_to_keep"] == 1
    assert set(plain.extra_inputs()) == set(CausalLMShapes(num_speculative_tokens=(0, 2)).extra_inputs())
