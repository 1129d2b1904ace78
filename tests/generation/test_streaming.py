from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation import Detokenizer, TextGenerator
from qeff_framework.tokenization import TextTokenizer, load_tokenizer
from qeff_framework.tokenization.tokenizer import FastTokenizer
from tests.generation.fakes import FakeCausalLM, expected_tokens
from tests.tokenizer_folders import byte_fallback_tokenizer, byte_level_tokenizer, word_piece_tokenizer

BYTE_LEVEL = FastTokenizer(byte_level_tokenizer(), {"eos_token": "<eos>"})
BYTE_FALLBACK = FastTokenizer(byte_fallback_tokenizer(), {"eos_token": "<eos>"})
WORD_PIECE = FastTokenizer(word_piece_tokenizer(), {"clean_up_tokenization_spaces": True})


def pieces_of(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.put(token) for token in ids), detokenizer.finish()]


@settings(max_examples=300)
@given(st.lists(st.integers(0, len(BYTE_LEVEL.vocabulary()) - 1), max_size=60))
def test_pieces_of_any_byte_level_tokens_add_up_to_the_text(ids: list[int]) -> None:
    assert "".join(pieces_of(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@settings(max_examples=200)
@given(st.text(max_size=40), st.sampled_from([BYTE_LEVEL, BYTE_FALLBACK]))
def test_pieces_of_a_text_hold_whole_characters_only(text: str, tokenizer: FastTokenizer) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["the", "it", "fo", "x", " ", "é", "🦊", ".", "<eos>"]), max_size=50))
def test_pieces_add_up_across_special_tokens_and_leading_spaces(words: list[str]) -> None:
    ids = BYTE_FALLBACK.encode("".join(words))
    assert "".join(pieces_of(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids)


def test_a_space_after_many_special_tokens_is_kept() -> None:
    ids = BYTE_FALLBACK.encode("it" + "<eos>" * 30 + " the")
    assert "".join(pieces_of(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids)
    assert BYTE_FALLBACK.decode(ids).endswith(" the")


def test_word_pieces_are_joined_and_cleaned_up() -> None:
    ids = WORD_PIECE.encode("The fox jumps over the dog. What they say, here! The lazy dog.", add_special_tokens=False)
    assert "".join(pieces_of(WORD_PIECE, ids)) == WORD_PIECE.decode(ids)


def test_text_appears_as_soon_as_it_is_whole() -> None:
    ids = BYTE_FALLBACK.encode("it 🦊", add_special_tokens=False)
    pieces = pieces_of(BYTE_FALLBACK, ids)
    fox = pieces.index("🦊")
    assert pieces[fox - 3 : fox] == ["", "", ""], "three of four bytes are no character"
    assert pieces[0] == "it"


def test_decoding_stays_within_a_window() -> None:
    longest = 0

    class Counting(FastTokenizer):
        def decode(self, ids: object, *, skip_special_tokens: bool = True) -> str:
            nonlocal longest
            longest = max(longest, len(ids))  # type: ignore[arg-type]
            return super().decode(ids, skip_special_tokens=skip_special_tokens)  # type: ignore[arg-type]

    detokenizer = Detokenizer(Counting(byte_level_tokenizer()))
    for token in BYTE_LEVEL.encode("The quick brown fox. " * 50):
        detokenizer.put(token)
    assert longest < 20


# --- streams of a generator -----------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tokenizer_folders: dict[str, Path]) -> TextTokenizer:
    return load_tokenizer(tokenizer_folders["byte_level"])


@pytest.fixture
def generator(tokenizer: TextTokenizer) -> TextGenerator:
    return TextGenerator(FakeCausalLM(2, 4, 64, vocab=len(tokenizer.vocabulary())), tokenizer)


def test_a_text_stream_yields_the_text_and_ends_with_the_output(generator: TextGenerator) -> None:
    whole = generator.generate("The fox", max_new_tokens=20)
    stream = generator.stream("The fox", max_new_tokens=20)
    first = next(stream)
    with pytest.raises(InputError, match="has not ended"):
        _ = stream.output
    assert first + "".join(stream) == whole.generated_texts[0]
    assert stream.output.generated_ids == whole.generated_ids
    assert stream.output.prompts == ["The fox"]


def test_a_text_stream_takes_one_prompt(generator: TextGenerator) -> None:
    with pytest.raises(InputError, match="takes one prompt, 2 were given"):
        generator.stream(["a", "b"])


def test_an_abandoned_stream_does_not_disturb_the_next_generation(
    generator: TextGenerator, tokenizer: TextTokenizer
) -> None:
    stream = generator.stream("The fox", max_new_tokens=20)
    next(stream)
    output = generator.generate("It's", max_new_tokens=5)
    vocab = len(tokenizer.vocabulary())
    assert output.generated_ids == [expected_tokens(tokenizer.encode("It's"), 5, [tokenizer.eos_token_id or 0], vocab)]
    with pytest.raises(ExecutionError, match="another generation has started"):
        list(stream)


def test_stream_prints_one_prompt_as_it_comes(generator: TextGenerator, capsys: pytest.CaptureFixture[str]) -> None:
    output = generator.generate("The fox", max_new_tokens=12, stream=True)
    assert capsys.readouterr().out == output.generated_texts[0] + "\n"


def test_stream_prints_several_prompts_one_after_the_other(generator: TextGenerator) -> None:
    file = io.StringIO()
    output = generator.generate(["The fox", "Größe"], max_new_tokens=12, ignore_eos=True, stream=file)
    assert file.getvalue() == "".join(f"[{i}] {text}\n" for i, text in enumerate(output.generated_texts))
