"""What programs that generate text would refuse, known from their sizes before there are programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qeff_framework.errors import InputError

#: Settings that only the rules of a language model's own loop follow.
_OF_TEXT_LOOPS = ("json_schema", "regex", "prompt_lookup_num_tokens")


def require_beams(settings: Mapping[str, Any], shapes: Any, checkpoint_beams: int = 1) -> None:
    """Raises `InputError` for more beams than a program of these sizes has rows.

    Args:
        settings: what the caller has given.
        shapes: the sizes.
        checkpoint_beams: those of the checkpoint's generation config, which count where the caller gives none.
    """
    is_given = "num_beams" in settings
    beams = (settings["num_beams"] or 1) if is_given else checkpoint_beams
    if beams < 2:
        return
    told = f"num_beams={beams}" if is_given else f"the checkpoint's generation config says num_beams={beams}"
    other = "" if is_given else "; or num_beams=1 (--num-beams 1), which takes the most likely token at each step"
    if settings.get("do_sample"):
        remedy = "leave do_sample out" if is_given else "leave do_sample out, or give num_beams=1 (--num-beams 1)"
        raise InputError(f"{told}: beam search draws no samples; {remedy}")
    if problem := beams_problem(beams, shapes):
        raise InputError(f"{told}: {problem}{other}")


def beams_problem(beams: int, shapes: Any) -> str:
    """Why programs of these sizes cannot search with so many beams, and what to do; "" where they can."""
    if getattr(shapes, "full_batch_size", None) is not None:
        return (
            f"rows of continuous batching come one after the other; give batch_size={beams} instead of full_batch_size (-O "
            f"batch_size={beams})"
        )
    if getattr(shapes, "include_sampler", False):
        return "the program would choose tokens on the device and return no logits; leave include_sampler out"
    if beams > shapes.batch_size:
        return (
            f"the search takes {beams} rows for a prompt, and the program would compute {shapes.batch_size} at once; give "
            f"batch_size={beams} (-O batch_size={beams})"
        )
    return ""


def require_lookup(settings: Mapping[str, Any], shapes: Any) -> None:
    """Raises `InputError` for drafts that a program of these sizes would not check."""
    drafts = settings.get("prompt_lookup_num_tokens")
    if drafts and not shapes.num_speculative_tokens:
        raise InputError(
            f"prompt_lookup_num_tokens={drafts}: the program would return the logits of one token per step; give "
            f"num_speculative_tokens={drafts} (-O num_speculative_tokens={drafts})"
        )


def require_plain_loop(settings: Mapping[str, Any], task: str) -> None:
    """Raises `InputError` for settings that a decoder of sound, or of an image, does not follow."""
    given = [name for name in _OF_TEXT_LOOPS if settings.get(name) is not None]
    if given:
        raise InputError(
            f"the program would be for {task}, whose decoder does not follow {', '.join(given)}; leave it out"
        )


def require_new_tokens(settings: Mapping[str, Any], ctx_len: int) -> None:
    """Raises `InputError` for more new tokens than a decoder has room for behind a start token."""
    new = settings.get("max_new_tokens") or 0
    if new >= ctx_len:
        raise InputError(
            f"max_new_tokens={new} and a start token are more than ctx_len={ctx_len}; ask for fewer, or give a greater ctx_len "
            f"(-O ctx_len={new + 1})"
        )


def require_room(index: int, tokens: int, settings: Mapping[str, Any], ctx_len: int) -> None:
    """Raises `InputError` for a prompt of so many tokens that the context leaves no room for the new ones."""
    if tokens >= ctx_len:
        raise InputError(
            f"prompt {index} has {tokens} tokens, which leaves no room for new ones in ctx_len={ctx_len}; shorten it, or give "
            f"ctx_len={tokens + 1} or more (-O ctx_len={tokens + 1})"
        )
    new = settings.get("max_new_tokens") or 0
    if tokens + new > ctx_len:
        raise InputError(
            f"prompt {index} has {tokens} tokens, and {new} new ones make {tokens + new}: more than ctx_len={ctx_len}; ask for "
            f"at most {ctx_len - tokens} new tokens, or give ctx_len={tokens + new} (-O ctx_len={tokens + new})"
        )
