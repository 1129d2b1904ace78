"""Prompts as they come - texts, conversations, token ids, or what a tokenizer returns - as token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qeff_framework.errors import InputError, OptionError
from qeff_framework.tokenization.chat import ChatOptions, ChatTokenizer, Conversation, is_conversation
from qeff_framework.tokenization.inputs import as_text_list, normalize_inputs, warn_about_padding
from qeff_framework.tokenization.tokenizer import TextTokenizer, encode_prompt

#: A text, a conversation (a list of messages), several of them, token ids of one or several prompts, or what a tokenizer returns.
Prompts = (
    str | Conversation | Sequence[str | Conversation] | Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Any]
)


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompts:
    """Token ids of each prompt, and the texts that were read; `None` when the prompts were ids."""

    ids: list[list[int]]
    texts: list[str] | None


@dataclass(frozen=True, kw_only=True)
class PaddingIds:
    """Which id pads rows of ids that come without a mask."""

    #: Padding at either end of a row, which is dropped.
    hidden: int | None = None
    #: Text, but at the end of a row it is worth a warning.
    suspected: int | None = None
    #: Rows from which on it is.
    suspected_from: int = 1


def tokenize_prompts(
    prompts: Prompts,
    needed_tokenizer: Callable[[str], TextTokenizer],
    *,
    chat: ChatOptions | None = None,
    padding: PaddingIds,
    warn: Callable[[str], None],
) -> TokenizedPrompts:
    """Reads texts and conversations with the tokenizer that `needed_tokenizer` returns, and ids as they are.

    A text that begins with the start token gets no second one. `warn` gets a message about ids that may have been meant as
    padding and are read as text.

    Raises:
        InputError: prompts of no known form, no tokenizer or no chat template where there must be one.
        OptionError: options for conversations, and none is given.
    """
    chat = chat if chat is not None else ChatOptions()
    readable = _readable(prompts)
    if chat.given and not any(is_conversation(prompt) for prompt in readable or ()):
        raise OptionError(
            f"generate: {', '.join(chat.given)} is for prompts that are conversations, [{{'role': 'user', 'content': ...}}]"
        )
    if readable is None:
        rows = normalize_inputs(prompts, padding.hidden)
        has_mask = isinstance(prompts, Mapping) and prompts.get("attention_mask") is not None
        if not has_mask and len(rows) >= padding.suspected_from:
            warn_about_padding(rows, padding.suspected, warn)
        return TokenizedPrompts(ids=rows, texts=None)
    ids, texts = [], []
    for prompt in readable:
        if isinstance(prompt, str):
            texts.append(prompt)
            ids.append(encode_prompt(needed_tokenizer("prompts of text"), prompt))
        else:
            tokenizer = needed_tokenizer("conversations")
            if not isinstance(tokenizer, ChatTokenizer):
                raise InputError(f"{type(tokenizer).__name__} cannot render conversations; give the prompt as text")
            text, tokens = tokenizer.encode_chat(prompt, chat)
            texts.append(text)
            ids.append(tokens)
    return TokenizedPrompts(ids=ids, texts=texts)


def _readable(prompts: Prompts) -> list[Any] | None:
    """The prompts when they are texts and conversations, otherwise `None`."""
    if isinstance(prompts, str):
        return [prompts]
    # A conversation object of Transformers holds its messages under this name.
    messages = getattr(prompts, "messages", None)
    if is_conversation(messages):
        return [messages]
    if isinstance(prompts, Mapping):
        if "role" in prompts:
            raise InputError(
                "a message alone is no conversation; give a list of messages, [{'role': 'user', 'content': ...}]"
            )
        return None
    if is_conversation(prompts):
        return [prompts]
    prompts = as_text_list(prompts)
    if hasattr(prompts, "tolist") or not isinstance(prompts, Sequence):
        return None
    read = [_as_readable(prompt) for prompt in prompts]
    if not any(prompt is not None for prompt in read):
        return None
    for number, (prompt, given) in enumerate(zip(read, prompts, strict=True)):
        if prompt is None:
            raise InputError(
                f"prompt {number} is neither a text nor a list of messages like the others, it is of type {type(given).__name__}"
            )
    return read


def _as_readable(prompt: Any) -> Any:
    if isinstance(prompt, str) or is_conversation(prompt):
        return prompt
    for message in (prompt, *(prompt if isinstance(prompt, list) else ())):
        if isinstance(message, Mapping):
            raise InputError(
                f"{{{', '.join(map(repr, message))}}} among the prompts is no message: each has a 'role' and a 'content', "
                "[{'role': 'user', 'content': ...}]"
            )
    messages = getattr(prompt, "messages", None)
    return messages if is_conversation(messages) else None
