"""Rows for prompts of token ids, checked against what the program can take before the session is touched."""

from __future__ import annotations

from collections.abc import Sequence

from qeff_framework.contracts import BASE_ADAPTER
from qeff_framework.errors import InputError
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings


def admitted_rows(
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    shape: ProgramShape,
    *,
    adapters: str | Sequence[str | None] | None = None,
    queued: bool = False,
) -> list[Row]:
    """One row for each prompt.

    Args:
        prompts: token ids.
        settings: how many new tokens there may be.
        shape: what the program takes.
        adapters: the adapter of each prompt, or of all; `None` and "base" are the model alone.
        queued: the prompts wait for their turn, so that there may be any number, and each has the context for itself.

    Raises:
        InputError: the program cannot take the prompts, or has no such adapters.
    """
    queued = queued or shape.slots is not None
    if not prompts:
        raise InputError("no prompts were given; give at least one")
    if len(prompts) > shape.batch_size and not queued:
        raise InputError(
            f"{len(prompts)} prompts were given, the program takes {shape.batch_size} at once; "
            f"compile with batch_size={len(prompts)} (or with full_batch_size, for any number of prompts), or call generate "
            "several times"
        )
    sources: Sequence[Sequence[int]] = [()] * len(prompts)
    if shape.has_encoder:
        sources, prompts = prompts, [_decoder_start(settings, shape)] * len(prompts)
    for index, (prompt, source) in enumerate(zip(prompts, sources, strict=True)):
        _check_prompt(index, prompt, shape)
        if shape.has_encoder:
            _check_source(index, source, shape)
    longest = max(map(len, prompts))
    adapter_ids = _adapter_ids(adapters, len(prompts), shape)
    rows = [
        # Rows of one batch end together.
        Row(
            index=index,
            prompt=list(prompt),
            source=list(sources[index]),
            adapter=adapter_ids[index],
            limit=_limit(len(prompt), len(prompt) if queued else longest, settings, shape),
        )
        for index, prompt in enumerate(prompts)
    ]
    for row in rows:
        _check_rereading(row, shape)
        needed = len(row.prompt) + row.limit
        if needed > shape.ctx_len:
            raise InputError(
                f"prompt {row.index} has {len(row.prompt)} tokens, and {row.limit} new ones make {needed}: more than the "
                f"compiled ctx_len={shape.ctx_len}; ask for at most {shape.ctx_len - len(row.prompt)} new tokens, "
                f"or compile with ctx_len={needed}"
            )
    return rows


def _adapter_ids(adapters: str | Sequence[str | None] | None, count: int, shape: ProgramShape) -> list[int]:
    if adapters is None:
        return [0] * count
    if isinstance(adapters, str):
        adapters = [adapters] * count
    if len(adapters) != count:
        raise InputError(
            f"prompt_to_adapter_mapping names {len(adapters)} adapters for {count} prompts; give one name for all, or one for "
            "each"
        )
    known: dict[str | None, int] = {None: 0, BASE_ADAPTER: 0}
    known.update(shape.adapters.items())
    unknown = next((name for name in adapters if name not in known), None)
    if unknown is not None:
        held = f"the program holds {', '.join(shape.adapters)}" if shape.adapters else "the program holds none"
        raise InputError(
            f"prompt_to_adapter_mapping names the adapter {unknown!r}, and {held}; load it and compile again, or take "
            f"{BASE_ADAPTER!r}, the model alone"
        )
    return [known[name] for name in adapters]


def _check_prompt(index: int, prompt: Sequence[int], shape: ProgramShape) -> None:
    if not len(prompt):
        raise InputError(f"prompt {index} has no tokens; give it some text (this tokenizer adds none to an empty one)")
    if len(prompt) >= shape.ctx_len:
        raise InputError(
            f"prompt {index} has {len(prompt)} tokens, which leaves no room for new ones in the compiled "
            f"ctx_len={shape.ctx_len}; shorten it, or compile with ctx_len={len(prompt) + 1} or more"
        )
    if len(prompt) > shape.longest_prompt:
        raise InputError(
            f"prompt {index} has {len(prompt)} tokens, the prefill programs read {shape.longest_prompt} at most; shorten it, or "
            "compile with a greater last length in comp_ctx_lengths_prefill"
        )
    _check_ids(index, prompt, shape.vocab_size)


def _check_rereading(row: Row, shape: ProgramShape) -> None:
    """A text is read anew by the prefill programs, which may reach less far than the decode programs."""
    behind = range(len(row.prompt) + 1, len(row.prompt) + row.limit)
    too_long = [length for length in shape.reread_lengths if length in behind and length > shape.longest_prompt]
    if too_long:
        raise InputError(
            f"prompt {row.index} has {len(row.prompt)} tokens and gets {row.limit} new ones at most: a text of {too_long[0]} "
            f"tokens is read anew, since its rotary frequencies change, and prefill programs read {shape.longest_prompt} at "
            "most; ask for fewer new tokens, or compile with a greater last length in comp_ctx_lengths_prefill"
        )


def _check_source(index: int, source: Sequence[int], shape: ProgramShape) -> None:
    if not len(source):
        raise InputError(f"prompt {index} has no tokens; give it some text (this tokenizer adds none to an empty one)")
    longest = shape.prefill.sources[-1]
    if len(source) > longest:
        raise InputError(
            f"prompt {index} has {len(source)} tokens, the encoder was compiled for {longest} at most; shorten it, or compile "
            f"with encoder_seq_len={len(source)} or more"
        )
    _check_ids(index, source, shape.source_vocab_size)


def _check_ids(index: int, ids: Sequence[int], vocab_size: int | None) -> None:
    if min(ids) < 0 or (vocab_size is not None and max(ids) >= vocab_size):
        wrong = min(ids) if min(ids) < 0 else max(ids)
        upper = "" if vocab_size is None else f" to {vocab_size - 1}"
        raise InputError(
            f"prompt {index} holds the token id {wrong}, the model knows 0{upper}: is this the tokenizer of this model?"
        )


def _decoder_start(settings: GenerationSettings, shape: ProgramShape) -> list[int]:
    """What the decoder starts with. Raises `InputError` where nothing says it, or the decoder does not know it."""
    start = settings.decoder_start_token_id
    if start is None:
        raise InputError(
            "nothing says what the decoder starts with: the checkpoint names neither a decoder_start_token_id nor a "
            "bos_token_id; give decoder_start_token_id=..."
        )
    if start < 0 or (shape.vocab_size is not None and start >= shape.vocab_size):
        raise InputError(
            f"decoder_start_token_id={start} is no token of the model, whose decoder knows {shape.vocab_size}"
        )
    return [start]


def _limit(length: int, longest: int, settings: GenerationSettings, shape: ProgramShape) -> int:
    """New tokens that a prompt of `length` may get; by default what the longest prompt leaves of the context."""
    if settings.max_new_tokens is not None:
        limit = settings.max_new_tokens
    elif settings.max_length is None:
        return shape.ctx_len - longest
    elif settings.max_length <= length:
        whose = "the checkpoint's max_length" if settings.limit_is_advice else "max_length"
        raise InputError(
            f"{whose}={settings.max_length} counts the prompt, which has {length} tokens already; "
            "give max_new_tokens=... instead"
        )
    else:
        limit = settings.max_length - length
    return min(limit, shape.ctx_len - length) if settings.limit_is_advice else limit
